//! Freeing content whose key is not there: a locked SSE-C object, or one whose master key may not be used, is deleted like
//! any other. Its map is walked as the rows have it, unverified, since that takes the key: it says where chunks lie, and
//! nothing of it is shown to anybody.

use super::inode::{Content, State};
use super::leaf::Leaf;
use super::map::{HEIGHT_MAX, Index, NodeWrite};
use super::{Bucket, BucketError};
use crate::catalog::CatalogError;

/// Leaves freed in one commit.
const LEAVES_AT_ONCE: usize = 2048;

struct Walk<'a> {
    bucket: &'a Bucket,
    content: &'a mut Content,
    leaves: usize,
    went: u64,
}

impl Bucket {
    /// Free some of a content that nobody will look at again, from the catalog's rows; true when nothing is left. What was
    /// freed earlier is told by the rows of nodes that are gone. The caller holds `io` exclusively, and the inode is quiet.
    pub(super) fn free_unkeyed(&self, st: &mut State) -> Result<bool, BucketError> {
        let row = match self.catalog().lock().seal(st.row.ino) {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(true),
            Err(CatalogError::BadRow { why, .. }) => {
                log::warn!("object {}: {why}; its space in the log is not given back", st.row.ino);
                return Ok(true);
            }
            Err(e) => return Err(e.into()),
        };
        let content = match &mut st.content {
            Some(c) if c.unkeyed => c,
            other => other.insert(Box::new(Content { unkeyed: true, ..Content::default() })),
        };
        let mut walk = Walk { bucket: self, content, leaves: 0, went: 0 };
        let whole = match row.height {
            0 => {
                walk.leaf(&row.map);
                true
            }
            1..=HEIGHT_MAX => walk.node(row.height, &row.map)?,
            _ => true,
        };
        let went = walk.went;
        st.row.sealed = st.row.sealed.saturating_sub(went);
        Ok(whole)
    }
}

impl Walk<'_> {
    fn leaf(&mut self, body: &[u8]) {
        let Ok(leaf) = Leaf::parse(body) else { return };
        let chunks = leaf.chunks();
        self.went += chunks.iter().map(|c| u64::from(c.frame_bytes)).sum::<u64>();
        self.content.went(&chunks);
        self.leaves += 1;
    }

    /// What lies below a node; false when it is enough for one commit.
    fn node(&mut self, level: u8, body: &[u8]) -> Result<bool, BucketError> {
        let Some(node) = Index::parse(body) else { return Ok(true) };
        for child in node.0.iter().filter(|c| !c.is_hole()) {
            if self.leaves >= LEAVES_AT_ONCE {
                return Ok(false);
            }
            let Some(below) = self.bucket.catalog().lock().node(child.id)? else { continue };
            if level == 1 {
                self.leaf(&below);
            } else if !self.node(level - 1, &below)? {
                return Ok(false);
            }
            self.content.writes.push(NodeWrite::Delete(child.id));
        }
        Ok(true)
    }
}
