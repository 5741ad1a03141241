-- The keyring. Every row ends with a tag: HMAC(K_keyring, table, columns), so that an edited row is named. meta's tag
-- covers the tags of all rows in order, so that a removed row, or an older one put back, is noticed too.
-- No foreign keys: an upsert must never delete.

CREATE TABLE meta (
  one        INTEGER PRIMARY KEY CHECK (one = 1),
  root_id    BLOB NOT NULL,                 -- 8 bytes: which root key opens this keyring
  generation INTEGER NOT NULL,              -- +1 with every change: mounts watch it
  clock      INTEGER NOT NULL,              -- latest time seen, Unix seconds: a clock that goes back destroys nothing early
  tag        BLOB NOT NULL
) STRICT;

CREATE TABLE store (
  id   BLOB PRIMARY KEY NOT NULL,           -- as in STORE/store.id
  path BLOB NOT NULL UNIQUE,                -- where it was last seen, absolute, any bytes
  tag  BLOB NOT NULL
) STRICT;

CREATE TABLE bucket (
  id          BLOB PRIMARY KEY NOT NULL,
  store_id    BLOB NOT NULL,
  name        TEXT NOT NULL,
  wrapped_key BLOB NOT NULL,                -- K_bucket under the root key
  created     INTEGER NOT NULL,             -- Unix seconds
  tree_root   BLOB,                         -- reserved: the bucket's tree as of commit_no
  commit_no   INTEGER,
  tag         BLOB NOT NULL,
  UNIQUE (store_id, name)                   -- a known name never becomes another bucket
) STRICT;

CREATE TABLE master_key (
  id           TEXT PRIMARY KEY NOT NULL,   -- mk-0123456789abcdef
  alias        TEXT UNIQUE,
  kind         TEXT NOT NULL,               -- managed: of one bucket; cmk: a customer master key
  bucket_id    BLOB UNIQUE,                 -- of a managed key
  description  TEXT NOT NULL,
  state        TEXT NOT NULL,               -- enabled, disabled, pending-import, pending-deletion, destroyed
  created      INTEGER NOT NULL,
  provider     TEXT,                        -- an external key service: pkcs11, aws-kms; and
  provider_ref TEXT,                        -- the key's name there, the rest of its URI
  origin       TEXT NOT NULL,               -- generated, imported
  rotate_days  INTEGER,                     -- null: the default; 0: never
  delete_after INTEGER,                     -- Unix seconds, while pending deletion
  destroyed    INTEGER,                     -- when; the row stays, its versions are gone
  due_seen     TEXT,                        -- when its end was first seen: a clock that is ahead destroys nothing
  tag          BLOB NOT NULL
) STRICT;

CREATE TABLE master_key_version (
  key_id  TEXT NOT NULL,
  version INTEGER NOT NULL,                 -- from 1
  wrapped BLOB NOT NULL,                    -- under the root key; empty: external; of deleted imported material: what tells it again
  created INTEGER NOT NULL,
  provider_ref TEXT,                        -- of an external key: this version's name there
  tag     BLOB NOT NULL,
  PRIMARY KEY (key_id, version)
) STRICT;

-- Which bucket hangs on which customer master key: a row is durable before the bucket uses the key for the first time.
CREATE TABLE dependant (
  bucket_id BLOB NOT NULL,
  key_id    TEXT NOT NULL,
  since     INTEGER NOT NULL,               -- Unix seconds
  tag       BLOB NOT NULL,
  PRIMARY KEY (bucket_id, key_id)
) STRICT;

-- Users who may name a customer master key in a rule or a request, besides root and the keyring's owner.
CREATE TABLE key_grant (
  key_id TEXT NOT NULL,
  uid    INTEGER NOT NULL,
  tag    BLOB NOT NULL,
  PRIMARY KEY (key_id, uid)
) STRICT;

CREATE TABLE kit (
  number  INTEGER PRIMARY KEY NOT NULL,     -- from 1, also on the kit itself
  created INTEGER NOT NULL,
  id      BLOB NOT NULL,                    -- 16 random bytes, in the kit as well
  tag     BLOB NOT NULL
) STRICT;

CREATE TABLE kit_key (
  number  INTEGER NOT NULL,                 -- of the kit
  key_id  TEXT NOT NULL,                    -- a master key that it holds,
  version INTEGER NOT NULL,                 -- up to this version
  tag     BLOB NOT NULL,
  PRIMARY KEY (number, key_id)
) STRICT;

CREATE TABLE kit_bucket (
  number    INTEGER NOT NULL,
  bucket_id BLOB NOT NULL,                  -- a bucket whose key it holds
  tag       BLOB NOT NULL,
  PRIMARY KEY (number, bucket_id)
) STRICT;
