//! `ssefs speed`: figures of this machine, as a table or JSON.

use super::args::SpeedArgs;
use super::place::Place;
use super::print::{self, Bar};
use crate::ops::{ErrorCode, OpError, speed};

pub fn run(place: &Place, args: &SpeedArgs) -> Result<(), OpError> {
    let as_json = args.output.json;
    let keyring = if args.key.is_empty() { None } else { Some(place.keyring()?) };
    let mut ids = Vec::new();
    for name in &args.key {
        ids.extend(keyring.iter().map(|keys| super::key::find(keys, name).map(|k| k.id)));
    }
    let ids = ids.into_iter().collect::<Result<Vec<_>, _>>()?;
    let bar = Bar::new();
    let s = speed::measure(keyring.as_ref().map(|k| (k, &ids[..])), &bar)?;
    drop(bar);
    if as_json {
        let value = serde_json::to_value(&s).map_err(|e| OpError::new(ErrorCode::General, e.to_string()))?;
        return print::json(&value);
    }
    let rows: Vec<Vec<String>> = s
        .ciphers
        .iter()
        .map(|c| {
            let (chunk, mb) = (format!("{} KiB", c.chunk_bytes >> 10), |x: f64| format!("{x:.0}"));
            vec![c.cipher.clone(), c.library.clone(), chunk, mb(c.seal_mb_s), mb(c.open_mb_s)]
        })
        .collect();
    print::table(&["CIPHER", "LIBRARY", "CHUNK", "SEAL MB/S", "OPEN MB/S"], &rows)?;
    let rows: Vec<Vec<String>> = s
        .providers
        .iter()
        .map(|p| vec![p.provider.clone(), format!("{:.1}", p.wrap_us), format!("{:.1}", p.unwrap_us)])
        .collect();
    print::answer("\n")?;
    print::table(&["KEY PROVIDER", "WRAP US", "UNWRAP US"], &rows)?;
    print::answer(&format!("\nOne core; this machine has {}.\n", s.cores))
}
