//! A recovery kit's bytes: the text file, and the rows sealed in it. Text, so that it can be printed, mailed and pasted.

use super::super::keyring::Dumped;
use super::Kit;
use crate::crypto::passphrase::Kdf;
use crate::types::{from_hex, to_hex};
use rusqlite::types::Value;
use std::path::Path;

const FIRST_LINE: &str = "ssefs-kit-1";
const FAMILY: &str = "ssefs-kit-";
const BEGIN: &str = "-----BEGIN SSEFS RECOVERY KIT-----";
const END: &str = "-----END SSEFS RECOVERY KIT-----";
/// Hexadecimal digits a line.
const LINE: usize = 64;
const TABLES_MAX: usize = 64;

/// The lines that say what the kit is; the payload's tag covers them.
pub fn head(kit: &Kit) -> String {
    format!(
        "{FIRST_LINE}\nnumber {}\nid {}\ncreated {}\nroot {}\nsealed-by {}\nkdf {}\nwrapped {}\n",
        kit.number,
        to_hex(&kit.id),
        kit.created,
        to_hex(&kit.root_id),
        if kit.by_code { "code" } else { "passphrase" },
        kit.kdf,
        to_hex(&kit.wrapped),
    )
}

/// The whole file.
pub fn print(kit: &Kit) -> String {
    let n = kit.number;
    let by = if kit.by_code { "the code that was shown when it was made" } else { "its passphrase" };
    let mut text = format!(
        "ssefs recovery kit {n}\n\n\
         With {by}, this file opens what the keyring held when it was made: every bucket and\n\
         every master key, but for keys that an external key service holds. Objects under a customer key (SSE-C) need that\n\
         key as well. Keep it away from the machine, and the {} away from it.\n\n\
         \x20   ssefs key kit test FILE                      what would it open, what was made since?\n\
         \x20   ssefs --config DIR key kit restore FILE      make root key and keyring from it\n\n{BEGIN}\n{}",
        if kit.by_code { "code" } else { "passphrase" },
        kit.head,
    );
    for line in to_hex(&kit.payload).as_bytes().chunks(LINE) {
        text.extend(line.iter().map(|&b| char::from(b)));
        text.push('\n');
    }
    text + END + "\n"
}

/// # Errors
/// Why the text is no kit.
pub fn parse(text: &str, path: &Path) -> Result<Kit, String> {
    // Mail and editors change line ends and put text around.
    let mut lines = text.lines().map(str::trim).skip_while(|l| *l != BEGIN).skip(1);
    let first = lines.next().ok_or_else(|| format!("it has no line {BEGIN:?}"))?;
    if first != FIRST_LINE {
        return Err(match first.starts_with(FAMILY) {
            true => "its version is newer than this ssefs knows (1)".into(),
            false => format!("its first line is not {FIRST_LINE:?}"),
        });
    }
    let mut field = |name: &'static str| {
        let value = lines.next().and_then(|l| l.strip_prefix(name)).and_then(|l| l.strip_prefix(' '));
        value.ok_or_else(|| format!("its line {name:?} is missing"))
    };
    let wrong = |name: &str| format!("its line {name:?} makes no sense");
    let number = field("number")?.parse().map_err(|_| wrong("number"))?;
    let id = from_hex(field("id")?).ok_or_else(|| wrong("id"))?;
    let created = field("created")?.parse().map_err(|_| wrong("created"))?;
    let root_id = from_hex(field("root")?).ok_or_else(|| wrong("root"))?;
    let by_code = match field("sealed-by")? {
        "code" => true,
        "passphrase" => false,
        _ => return Err(wrong("sealed-by")),
    };
    let kdf = Kdf::parse(field("kdf")?).ok_or_else(|| wrong("kdf"))?;
    let wrapped = bytes(field("wrapped")?).ok_or_else(|| wrong("wrapped"))?;
    let content: Vec<&str> = lines.collect();
    let end =
        content.iter().position(|l| *l == END).ok_or_else(|| format!("it is cut short: it has no line {END:?}"))?;
    let mut payload = Vec::new();
    for line in &content[..end] {
        payload.extend(bytes(line).ok_or("a line of its content is not hexadecimal")?);
    }
    let mut kit = Kit {
        path: path.to_owned(),
        number,
        id,
        created,
        root_id,
        by_code,
        kdf,
        wrapped,
        head: String::new(),
        payload,
    };
    kit.head = head(&kit);
    Ok(kit)
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|i| from_hex::<1>(&hex[i..i + 2]).map(|b| b[0])).collect()
}

/// The rows as bytes (FORMAT.md, "Recovery kit").
pub fn pack(generation: u64, tables: &[Dumped]) -> Vec<u8> {
    let mut out = generation.to_le_bytes().to_vec();
    out.push(tables.len() as u8);
    let field = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    for (table, rows) in tables {
        field(&mut out, table.name.as_bytes());
        out.push(table.columns.len() as u8);
        out.extend_from_slice(&(rows.len() as u32).to_le_bytes());
        for value in rows.iter().flatten() {
            match value {
                Value::Null => out.push(0),
                Value::Integer(i) => {
                    out.push(1);
                    out.extend_from_slice(&i.to_le_bytes());
                }
                Value::Text(t) => {
                    out.push(2);
                    field(&mut out, t.as_bytes());
                }
                Value::Blob(b) => {
                    out.push(3);
                    field(&mut out, b);
                }
                // No column has this type; STRICT tables hold that.
                Value::Real(_) => out.push(0),
            }
        }
    }
    out
}

/// The generation, and each table by its name with its rows. None when the bytes are none that `pack` makes.
pub fn unpack(bytes: &[u8]) -> Option<(u64, Vec<(String, Vec<Vec<Value>>)>)> {
    let mut at = Reader(bytes);
    let generation = u64::from_le_bytes(at.array()?);
    let tables = usize::from(at.array::<1>()?[0]);
    if tables > TABLES_MAX {
        return None;
    }
    let mut out = Vec::new();
    for _ in 0..tables {
        let name = at.text()?;
        let columns = usize::from(at.array::<1>()?[0]);
        let count = u32::from_le_bytes(at.array()?);
        if columns == 0 {
            return None;
        }
        let mut rows = Vec::new();
        for _ in 0..count {
            // A count that lies ends with the bytes, so nothing is reserved by it.
            rows.push((0..columns).map(|_| at.value()).collect::<Option<Vec<_>>>()?);
        }
        out.push((name, rows));
    }
    at.0.is_empty().then_some((generation, out))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn field(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(u32::from_le_bytes(self.array()?)).ok()?;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.field()?.to_vec()).ok()
    }

    fn value(&mut self) -> Option<Value> {
        Some(match self.array::<1>()?[0] {
            0 => Value::Null,
            1 => Value::Integer(i64::from_le_bytes(self.array()?)),
            2 => Value::Text(self.text()?),
            3 => Value::Blob(self.field()?.to_vec()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::rows::{MASTER, STORE};

    #[test]
    fn rows_survive_and_cut_or_altered_bytes_never_panic() {
        let rows = vec![vec![Value::Blob(vec![1; 16]), Value::Blob(b"/store".to_vec())]];
        let mut master = vec![
            Value::Text("mk-1".into()),
            Value::Null,
            Value::Text("cmk".into()),
            Value::Null,
            Value::Text("ü".into()),
            Value::Text("enabled".into()),
            Value::Integer(-1),
        ];
        master.resize(MASTER.columns.len(), Value::Null);
        let packed = pack(7, &[(&STORE, rows.clone()), (&MASTER, vec![master.clone()])]);
        let (generation, tables) = unpack(&packed).unwrap();
        assert_eq!(generation, 7);
        assert_eq!(tables, [("store".to_owned(), rows), ("master_key".to_owned(), vec![master])]);
        for n in 0..packed.len() {
            assert_eq!(unpack(&packed[..n]), None, "{n}");
            for bit in 0..8 {
                let mut altered = packed.clone();
                altered[n] ^= 1 << bit;
                let _ = unpack(&altered);
            }
        }
    }
}
