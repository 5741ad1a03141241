//! Where keys come from: the root key and its sources, the keyring that keeps master keys and bucket keys wrapped under it,
//! and the trait by which a bucket asks for the keys that wrap its data keys. Nothing here sees a data key or content.

mod buckets;
mod db;
mod error;
mod files;
mod keyring;
mod kit;
mod masters;
mod rewrap;
pub mod root;
mod rows;
mod service;
mod stores;

pub use buckets::BucketInfo;
pub use error::KeyError;
pub use files::make_private_dir;
pub use keyring::{Created, Keyring, keyring_path, needed_root};
pub use kit::{Kit, KitContents, KitHas, KitInfo, KitLine, KitSeal, Restored};
pub use masters::{DEFAULT_CMK_ALIAS, KeyInfo, KeyKind, KeyState};
pub use root::RootSource;
pub use service::{KeyService, NewKek, Rewrapped};
