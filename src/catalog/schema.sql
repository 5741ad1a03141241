-- The catalog of one bucket, version 1 (FORMAT.md). STRICT: a value of another type is refused, not guessed at.

-- What the bucket is: format, id, name, dialect, owner, chunk size, rule, commit number, next ino; `tag` authenticates them all.
CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
-- Who may change rules besides the owner and root.
CREATE TABLE grant_rule (uid INTEGER PRIMARY KEY) STRICT;
-- Rules of directories, in short form.
CREATE TABLE dir_rule (ino INTEGER PRIMARY KEY, rule TEXT NOT NULL) STRICT;
-- Customer keys asked for new files below a directory: salts and verifiers, never a key.
CREATE TABLE dir_customer (ino INTEGER PRIMARY KEY, requests TEXT NOT NULL) STRICT;
-- Open ids by the small number that map entries use. A row is durable before the first seal under it.
CREATE TABLE opening (no INTEGER PRIMARY KEY, open_id BLOB NOT NULL) STRICT;
-- Keys that wrap data keys, each wrapped by a version of a master key: a rewrap changes these rows alone.
CREATE TABLE kek (
  id INTEGER PRIMARY KEY, key_id TEXT NOT NULL, key_version INTEGER NOT NULL, wrapped BLOB NOT NULL,
  created INTEGER NOT NULL, uses INTEGER NOT NULL) STRICT;

-- Attributes. `sealed` is the bytes the object's chunks take in the log, `parent` the directory whose rules hold for it,
-- `flags` bit 0: has xattrs, bit 1: has a request. Times are nanoseconds since 1970.
CREATE TABLE inode (
  ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, nlink INTEGER NOT NULL,
  rdev INTEGER NOT NULL, size INTEGER NOT NULL, sealed INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL,
  ctime INTEGER NOT NULL, btime INTEGER NOT NULL, parent INTEGER NOT NULL, flags INTEGER NOT NULL) STRICT;
-- Names are any bytes; kind is the file type of st_mode >> 12.
CREATE TABLE dirent (
  parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL,
  PRIMARY KEY (parent, name)) STRICT, WITHOUT ROWID;
CREATE TABLE symlink (ino INTEGER PRIMARY KEY, target BLOB NOT NULL) STRICT;
CREATE TABLE xattr (
  ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (ino, name)) STRICT, WITHOUT ROWID;
-- The request of a file: encryption asked for by an xattr, in short form.
CREATE TABLE request (ino INTEGER PRIMARY KEY, rule TEXT NOT NULL, tag BLOB NOT NULL) STRICT;
-- Unlinked while open: reaped when the last handle closes, or after the next mount.
CREATE TABLE orphan (ino INTEGER PRIMARY KEY) STRICT;

-- One PUT: how the object's content is sealed. `map` is the body of the top node of its map; a small object has no other.
CREATE TABLE seal (
  ino INTEGER PRIMARY KEY, seal_id BLOB NOT NULL, method INTEGER NOT NULL, cipher INTEGER NOT NULL, kek INTEGER NOT NULL,
  key_id TEXT NOT NULL, wrapped BLOB NOT NULL, origin TEXT NOT NULL, chunk_bytes INTEGER NOT NULL, height INTEGER NOT NULL,
  map BLOB NOT NULL, tag BLOB NOT NULL, place_tag BLOB NOT NULL, customer_salt BLOB, customer_verifier BLOB) STRICT;
-- Nodes of larger maps. A rowid table: half as much again as fast as WITHOUT ROWID for blobs of this size.
CREATE TABLE node (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
-- Plain content that a conversion replaced, still to be overwritten in the log.
CREATE TABLE wipe (segment INTEGER NOT NULL, position INTEGER NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (segment, position)) STRICT, WITHOUT ROWID;
-- Length and live bytes of each segment as of this commit.
CREATE TABLE segment (id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, live INTEGER NOT NULL) STRICT;
