//! The keyring's SQLite file: making it whole or not at all, opening it with the settings it needs, and refusing
//! whatever is not a keyring of a format this ssefs knows.

use super::KeyError;
use super::files::{create_beside, link_into_place};
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

/// `application_id`: "SSEK".
const APPLICATION_ID: i64 = 0x5353_454b;
const USER_VERSION: i64 = 1;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the keyring at `path`, filled by `fill`, unless there is one: false then. Durable and whole when it returns.
pub fn create(path: &Path, fill: impl FnOnce(&Connection) -> Result<(), KeyError>) -> Result<bool, KeyError> {
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    let (beside, empty) = create_beside(path).map_err(KeyError::io(path))?;
    drop(empty);
    let made = (|| {
        let db = connect(&beside, path)?;
        let sql = |e| KeyError::sql(path)(e);
        db.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
        db.execute_batch(include_str!("schema.sql")).map_err(sql)?;
        db.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
        db.pragma_update(None, "user_version", USER_VERSION).map_err(sql)?;
        fill(&db)?;
        db.execute_batch("COMMIT").map_err(sql)?;
        db.close().map_err(|(_, e)| sql(e))?;
        File::open(&beside).and_then(|f| f.sync_all()).map_err(KeyError::io(path))
    })();
    if let Err(e) = made {
        let _ = fs::remove_file(&beside);
        return Err(e);
    }
    link_into_place(&beside, path).map_err(KeyError::io(path))
}

/// Opens the keyring at `path`; its rows are not verified yet.
pub fn open(path: &Path) -> Result<Connection, KeyError> {
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(KeyError::KeyringMissing(path.to_owned())),
        Err(e) => return Err(KeyError::io(path)(e)),
        Ok(meta) if !meta.is_file() => {
            return Err(KeyError::NotAKeyring { path: path.to_owned(), why: "not a regular file".into() });
        }
        Ok(_) => {}
    }
    let db = connect(path, path)?;
    let sql = |e| KeyError::sql(path)(e);
    let number = |name: &str| db.pragma_query_value(None, name, |r| r.get::<_, i64>(0)).map_err(sql);
    if number("application_id")? != APPLICATION_ID {
        let why = "its application_id is not that of a keyring".into();
        return Err(KeyError::NotAKeyring { path: path.to_owned(), why });
    }
    match number("user_version")? {
        USER_VERSION => {}
        found if found > USER_VERSION => {
            return Err(KeyError::KeyringNewer { path: path.to_owned(), found, known: USER_VERSION });
        }
        found => {
            let why = format!("format {found} never existed");
            return Err(KeyError::NotAKeyring { path: path.to_owned(), why });
        }
    }
    let verdict: String = db.pragma_query_value(None, "quick_check", |r| r.get(0)).map_err(sql)?;
    if verdict != "ok" {
        return Err(KeyError::KeyringDamaged { path: path.to_owned(), why: verdict.chars().take(200).collect() });
    }
    Ok(db)
}

/// A number that changes whenever another connection, of any process, has committed.
pub fn data_version(db: &Connection, path: &Path) -> Result<i64, KeyError> {
    db.pragma_query_value(None, "data_version", |r| r.get(0)).map_err(KeyError::sql(path))
}

/// `named` is what messages call the file.
fn connect(path: &Path, named: &Path) -> Result<Connection, KeyError> {
    let sql = |e| KeyError::sql(named)(e);
    // Without CREATE, and without URI: a path is a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(sql)?;
    db.busy_timeout(BUSY_TIMEOUT).map_err(sql)?;
    db.execute_batch(
        "PRAGMA trusted_schema=OFF; PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA; PRAGMA secure_delete=ON;
         PRAGMA temp_store=MEMORY;",
    )
    .map_err(sql)?;
    Ok(db)
}
