//! What a bucket holds under each method, key and key version, and whether it is what the rules want (SEMANTICS 74). From one
//! commit, a page of objects at a time. Nothing is believed that its tag does not say.

use std::collections::{BTreeMap, HashMap};

use super::inspect::Inspection;
use super::job::Ask;
use super::put::{METHOD_ERASED, cipher_code, cipher_name, method_code, method_name};
use super::{Bucket, BucketError, ROOT};
use crate::catalog::{FLAG_REQUEST, ObjectRow};
use crate::rule::{Effective, Origin, Request, Rule, resolve};
use crate::types::KeyId;

const AT_ONCE: usize = 1024;
/// Directories whose rule is kept in memory; all are forgotten when there are more.
const DIRECTORIES_MAX: usize = 65_536;

/// Which objects to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listed {
    Plain,
    /// Those that are not what a PUT would make of them now.
    Outside,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Covered {
    pub method: String,
    pub cipher: String,
    pub key: Option<String>,
    pub key_version: Option<u32>,
    pub objects: u64,
    pub bytes: u64,
}

/// An object named in the report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NamedObject {
    pub path: String,
    pub object: u64,
    pub why: String,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Coverage {
    pub bucket: String,
    pub rule: Option<String>,
    pub require_encryption: bool,
    pub commit_number: u64,
    pub groups: Vec<Covered>,
    /// Objects without content, which have no encryption yet.
    pub empty_objects: u64,
    pub objects: u64,
    pub bytes: u64,
    pub plain_objects: u64,
    pub plain_bytes: u64,
    pub erased_objects: u64,
    /// Not what a PUT would make of them now, plain ones where no rule stands among them.
    pub outside_objects: u64,
    pub outside_bytes: u64,
    /// Their rows do not verify: nothing they say was counted.
    pub altered_objects: u64,
    pub all_under_rule: bool,
    pub listed: Vec<NamedObject>,
    /// Of those asked for, how many were not named.
    pub not_listed: u64,
}

/// Method, cipher, key, version.
type Group = (u8, u8, String, u32);

struct Rules<'a> {
    bucket: &'a Bucket,
    view: &'a Inspection<'a>,
    rule: Option<Rule>,
    dir_rules: HashMap<u64, Rule>,
    nearest: HashMap<u64, Option<Rule>>,
    /// Key of each rule; None where it is not to be had.
    keys: HashMap<Rule, Option<KeyId>>,
}

impl Rules<'_> {
    /// The rule of the nearest directory above.
    fn nearest(&mut self, dir: u64) -> Result<Option<Rule>, BucketError> {
        if self.dir_rules.is_empty() {
            return Ok(None);
        }
        let (mut at, mut seen) = (dir, Vec::new());
        let found = loop {
            if let Some(known) = self.nearest.get(&at) {
                break known.clone();
            }
            if let Some(rule) = self.dir_rules.get(&at) {
                break Some(rule.clone());
            }
            seen.push(at);
            if at == ROOT || at == 0 || seen.len() > 4096 {
                break None;
            }
            match self.view.rows().inode(at)? {
                Some(row) => at = row.parent,
                None => break None,
            }
        };
        if self.nearest.len() > DIRECTORIES_MAX {
            self.nearest.clear();
        }
        for dir in seen {
            self.nearest.insert(dir, found.clone());
        }
        Ok(found)
    }

    fn effective(&mut self, parent: u64, request: Option<&Request>) -> Result<Effective, BucketError> {
        let dir = self.nearest(parent)?;
        let dirs = dir.as_ref().map(|r| (std::path::PathBuf::new(), r));
        Ok(resolve(request, dirs, self.rule.as_ref(), self.bucket.settings().dialect))
    }

    /// Why an object with content is not as a PUT would make it now; None if it is.
    fn outside(&mut self, method: u8, cipher: u8, key: &str, want: &Effective) -> Option<String> {
        if method == METHOD_ERASED {
            return None;
        }
        let Some(rule) = want.asked.rule() else {
            let customer = method == method_code(crate::rule::Method::SseC);
            return (!customer).then(|| format!("{}; in force: {want}", method_name(method)));
        };
        if *rule == Rule::None {
            // An encrypted object is never made plain by a write, and a rule none asks for plain ones.
            return (method == 0 && want.origin == Origin::None).then(|| "plain; no rule is in force".to_owned());
        }
        // Its customer asked for that, and no rule can.
        if method == method_code(crate::rule::Method::SseC) {
            return None;
        }
        let bucket = self.bucket;
        let wanted = self.keys.entry(rule.clone()).or_insert_with(|| bucket.resolve_rule(rule).ok().map(|r| r.key));
        let same = method == method_code(rule.method())
            && cipher == cipher_code(rule.cipher())
            && wanted.as_ref().is_none_or(|k| k.0 == key);
        (!same).then(|| format!("{}; in force: {} ({})", method_name(method), want.asked, want.origin))
    }
}

impl Bucket {
    /// See the module. `list` names up to `most` objects.
    pub fn coverage(&self, list: Option<Listed>, most: usize, ask: &Ask) -> Result<Coverage, BucketError> {
        self.keys()?;
        if self.health().is_ok() {
            self.commit()?;
        }
        let view = self.inspect()?;
        let settings = self.settings();
        let (files, _, _) = view.rows().totals()?;
        (ask.stage)("objects", Some(files));
        let commit = view.rows().settings()?.into_iter().find(|(n, _)| n == "commit");
        let versions: HashMap<u64, u32> = view.rows().keks()?.into_iter().map(|k| (k.id, k.key_version)).collect();
        let mut rules = Rules {
            bucket: self,
            view: &view,
            rule: settings.rule.clone(),
            dir_rules: settings.dir_rules.clone(),
            nearest: HashMap::new(),
            keys: HashMap::new(),
        };
        let mut c = Coverage {
            bucket: self.name.to_string(),
            rule: settings.rule.as_ref().map(Rule::to_string),
            require_encryption: settings.require_encryption,
            commit_number: commit.and_then(|(_, v)| String::from_utf8(v).ok()?.parse().ok()).unwrap_or(0),
            groups: Vec::new(),
            empty_objects: 0,
            objects: 0,
            bytes: 0,
            plain_objects: 0,
            plain_bytes: 0,
            erased_objects: 0,
            outside_objects: 0,
            outside_bytes: 0,
            altered_objects: 0,
            all_under_rule: false,
            listed: Vec::new(),
            not_listed: 0,
        };
        let mut groups: BTreeMap<Group, (u64, u64)> = BTreeMap::new();
        let mut named: BTreeMap<(u64, u64), String> = BTreeMap::new();
        let mut after = 0;
        loop {
            let page = view.rows().objects_after(after, AT_ONCE)?;
            let Some(last) = page.last() else { break };
            after = last.inode.ino;
            for row in &page {
                // One without a name is on its way out.
                if row.inode.nlink == 0 {
                    continue;
                }
                let why = self.count(row, &mut rules, &versions, &mut groups, &mut c)?;
                let wanted = match list {
                    None => None,
                    Some(Listed::Plain) => why.filter(|w| w.0 == Listed::Plain),
                    Some(Listed::Outside) => why.filter(|w| w.2),
                };
                match wanted {
                    Some(_) if named.len() >= most => c.not_listed += 1,
                    Some((_, words, _)) => drop(named.insert((row.inode.parent, row.inode.ino), words)),
                    None => {}
                }
            }
            if !(ask.advance)(page.len() as u64) {
                return Err(BucketError::Stopped);
            }
        }
        c.groups = groups
            .into_iter()
            .map(|((method, cipher, key, version), (objects, bytes))| Covered {
                method: method_name(method),
                cipher: cipher_name(cipher),
                key: (!key.is_empty()).then_some(key),
                key_version: (version > 0).then_some(version),
                objects,
                bytes,
            })
            .collect();
        c.all_under_rule = c.outside_objects == 0 && c.altered_objects == 0;
        c.listed = self.name_objects(&view, named)?;
        Ok(c)
    }

    /// Count one object. What it is, in words, and whether it is outside of the rule.
    fn count(
        &self,
        row: &ObjectRow,
        rules: &mut Rules,
        versions: &HashMap<u64, u32>,
        groups: &mut BTreeMap<Group, (u64, u64)>,
        c: &mut Coverage,
    ) -> Result<Option<(Listed, String, bool)>, BucketError> {
        let size = row.inode.size;
        c.objects += 1;
        let altered = |c: &mut Coverage, why: &str| {
            c.altered_objects += 1;
            Ok(Some((Listed::Outside, format!("altered: {why}"), true)))
        };
        let request = match row.inode.flags & FLAG_REQUEST {
            0 => None,
            _ => match rules.view.request(row.inode.ino)? {
                Ok(request) => request,
                Err(why) => return altered(c, why),
            },
        };
        let Some(seal) = &row.seal else {
            if size > 0 {
                return altered(c, "its seal is missing");
            }
            c.empty_objects += 1;
            return Ok(None);
        };
        match self.verify_place(seal, size, request.as_ref()) {
            Ok(_) | Err(BucketError::Erased(_)) => {}
            Err(BucketError::Damaged { why, .. }) => return altered(c, why),
            Err(e) => return Err(e),
        }
        if size == 0 {
            c.empty_objects += 1;
            return Ok(None);
        }
        c.bytes += size;
        let version = versions.get(&seal.kek).copied().unwrap_or(0);
        let group = groups.entry((seal.method, seal.cipher, seal.key_id.clone(), version)).or_default();
        group.0 += 1;
        group.1 += size;
        c.erased_objects += u64::from(seal.method == METHOD_ERASED);
        let want = rules.effective(row.inode.parent, request.as_ref())?;
        let outside = rules.outside(seal.method, seal.cipher, &seal.key_id, &want);
        if outside.is_some() {
            c.outside_objects += 1;
            c.outside_bytes += size;
        }
        if seal.method == 0 {
            c.plain_objects += 1;
            c.plain_bytes += size;
            let words = outside.clone().unwrap_or_else(|| format!("plain; in force: {} ({})", want.asked, want.origin));
            return Ok(Some((Listed::Plain, words, outside.is_some())));
        }
        Ok(outside.map(|words| (Listed::Outside, words, true)))
    }

    /// Paths of objects, by the directory they are in: each directory is read once.
    fn name_objects(
        &self,
        view: &Inspection,
        mut named: BTreeMap<(u64, u64), String>,
    ) -> Result<Vec<NamedObject>, BucketError> {
        let mut out = Vec::with_capacity(named.len());
        while let Some((&(parent, _), _)) = named.first_key_value() {
            let rest = named.split_off(&(parent + 1, 0));
            let mut here = std::mem::replace(&mut named, rest);
            let dir = self.path_of(parent)?;
            let mut after = Vec::new();
            while !here.is_empty() {
                let page = view.rows().entries(parent, &after, AT_ONCE)?;
                let Some(last) = page.last() else { break };
                after = last.name.clone();
                for e in &page {
                    if let Some(why) = here.remove(&(parent, e.ino)) {
                        let path = dir.join(String::from_utf8_lossy(&e.name).as_ref());
                        out.push(NamedObject { path: path.display().to_string(), object: e.ino, why });
                    }
                }
            }
            // A link that outlived the name it was made under.
            out.extend(here.into_iter().map(|((_, ino), why)| NamedObject {
                path: format!("inode {ino}"),
                object: ino,
                why,
            }));
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }
}
