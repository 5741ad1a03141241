//! What is left after a power cut: chooses which pending changes of names and bytes reached the disk, and makes
//! that the disk's whole state. Every choice comes from a seed.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;

use super::super::rng::Rng;
use super::disk::{Disk, Inode, Node, ROOT};

/// Which of the changes that nobody synced survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None: the disk is as synced.
    Nothing,
    /// All: as after a crash of the program alone.
    Everything,
    /// Any subset, out of order, writes torn at blocks and sectors.
    Random,
    /// All up to one moment, the last one torn: a disk that writes in order.
    Prefix,
    /// All bytes and none of the names, or the other way round.
    NamesOrBytes,
}

impl Survival {
    /// Every policy, for tests that walk through them.
    pub const ALL: [Survival; 5] =
        [Survival::Nothing, Survival::Everything, Survival::Random, Survival::Prefix, Survival::NamesOrBytes];
}

impl Disk {
    /// Decides what survives, forgets the rest, and switches power on again. Faults and the cut are disarmed.
    pub fn reboot(&mut self, survival: Survival, seed: u64) {
        let mut rng = Rng::new(seed);
        // How much survives differs from cut to cut, else every cut would keep about half.
        let keep = *rng.pick(&[5, 30, 50, 70, 95]);
        let (first, last) = self.pending_range();
        let moment = first + rng.below(last - first + 1);
        let bytes_only = rng.chance(50);

        let mut lost: HashSet<(u64, OsString)> = HashSet::new();
        for op in std::mem::take(&mut self.names) {
            let rests_on_lost = op.changes.iter().any(|(dir, name, _)| lost.contains(&(*dir, name.clone())));
            let survives = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Random => rng.chance(keep),
                Survival::Prefix => op.seq < moment,
                Survival::NamesOrBytes => !bytes_only,
            };
            if survives && !rests_on_lost {
                self.apply_names(&op, false);
            } else {
                lost.extend(op.changes.into_iter().map(|(dir, name, _)| (dir, name)));
            }
        }

        // In the order of their numbers: a HashMap's own order would make seeds worthless.
        let mut inodes: Vec<(&u64, &mut Inode)> = self.inodes.iter_mut().collect();
        inodes.sort_by_key(|(ino, _)| **ino);
        for (_, inode) in inodes {
            let attr_survives = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                _ => rng.chance(keep),
            };
            if attr_survives {
                inode.stable_attr = inode.attr.clone();
            }
            inode.attr = inode.stable_attr.clone();
            match &mut inode.node {
                Node::File(file) => {
                    for (seq, op) in std::mem::take(&mut file.pending) {
                        match survival {
                            Survival::Nothing => {}
                            Survival::Everything => file.stable.apply(&op),
                            Survival::Random => file.stable.apply_torn(&op, &mut rng, keep),
                            Survival::Prefix if seq < moment => file.stable.apply(&op),
                            Survival::Prefix if seq == moment => {
                                file.stable.apply_torn(&op, &mut rng, 50);
                            }
                            Survival::Prefix => {}
                            Survival::NamesOrBytes if bytes_only => file.stable.apply(&op),
                            Survival::NamesOrBytes => {}
                        }
                    }
                    file.live = file.stable.clone();
                }
                Node::Dir(dir) => dir.live = dir.stable.clone(),
                Node::Symlink(_) | Node::Special => {}
            }
        }
        self.forget_unreachable();
        self.faults.clear();
        self.cut_at = None;
        self.dead = false;
        self.boot += 1;
    }

    /// What a failed fsync leaves: some of the file's changes reached the disk, the others are no longer known
    /// to be dirty and no later sync writes them, though programs still read them until the next boot.
    pub fn fail_sync(&mut self, ino: u64) {
        let mut rng = Rng::new(self.steps);
        if let Some(Inode { node: Node::File(file), .. }) = self.inodes.get_mut(&ino) {
            for (_, op) in file.pending.drain(..) {
                file.stable.apply_torn(&op, &mut rng, 50);
            }
        }
    }

    fn pending_range(&self) -> (u64, u64) {
        let files = self.inodes.values().filter_map(|inode| match &inode.node {
            Node::File(file) => Some(file.pending.iter().map(|(seq, _)| *seq)),
            _ => None,
        });
        let mut all: Vec<u64> = files.flatten().collect();
        all.extend(self.names.iter().map(|op| op.seq));
        let first = all.iter().min().copied().unwrap_or(0);
        (first, all.iter().max().map_or(first, |last| last + 1))
    }

    fn forget_unreachable(&mut self) {
        let mut links: BTreeMap<u64, u32> = BTreeMap::new();
        let mut seen = HashSet::from([ROOT]);
        let mut queue = vec![ROOT];
        while let Some(ino) = queue.pop() {
            let Ok(dir) = self.dir(ino) else { continue };
            for child in dir.live.values() {
                *links.entry(*child).or_default() += 1;
                if seen.insert(*child) {
                    queue.push(*child);
                }
            }
        }
        self.inodes.retain(|ino, _| seen.contains(ino));
        for (ino, inode) in &mut self.inodes {
            inode.nlink = match inode.node {
                Node::Dir(_) => 2,
                _ => links.get(ino).copied().unwrap_or(0),
            };
        }
    }
}
