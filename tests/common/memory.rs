//! Looking for bytes in the memory of another process, as root: what a key must have left when it was taken back.
#![allow(dead_code)] // each test program uses a part of it

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// How often each needle occurs in what a process has written to: heap, stacks, anonymous maps.
pub fn count_in(pid: i32, needles: &[&[u8]]) -> Vec<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps of the process, as root");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("memory of the process, as root");
    let mut found = vec![0; needles.len()];
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').expect("a range");
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let overlap = needles.iter().map(|n| n.len()).max().unwrap_or(1) - 1;
        let mut at = from;
        while at < to {
            let n = (to - at).min((1 << 20) + overlap as u64) as usize;
            let mut bytes = vec![0u8; n];
            // What is not there (a guard, memory never touched) holds nothing.
            let Ok(n) = memory.read_at(&mut bytes, at) else {
                at += 4096;
                continue;
            };
            if n == 0 {
                break;
            }
            let bytes = &bytes[..n];
            let last = at + n as u64 >= to;
            for (needle, count) in needles.iter().zip(&mut found) {
                // Those in the overlap are counted by the next piece.
                let upto = if last { n } else { n.saturating_sub(overlap) };
                let mut i = 0;
                while let Some(p) = find(&bytes[i..], needle) {
                    *count += usize::from(i + p < upto);
                    i += p + 1;
                }
            }
            at += if last || n <= overlap { n as u64 } else { (n - overlap) as u64 };
        }
    }
    found
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut i = 0;
    while i + needle.len() <= bytes.len() {
        i += bytes[i..].iter().position(|b| *b == first)?;
        if bytes[i..].starts_with(needle) {
            return Some(i);
        }
        i += 1;
    }
    None
}
