//! Where keys come from: the root key and its sources, the keyring that keeps master keys and bucket keys wrapped under it,
//! and the trait by which a bucket asks for the keys that wrap its data keys. Nothing here sees a data key or content.

mod buckets;
mod db;
mod dependants;
mod error;
mod export;
mod external;
mod files;
mod keyring;
mod kit;
mod life;
mod masters;
mod material;
pub mod provider;
mod rewrap;
pub mod root;
mod rows;
mod service;
mod stores;
mod upkeep;

pub use buckets::BucketInfo;
pub use dependants::Dependant;
pub use error::KeyError;
pub use external::{Settled, Standing};
pub use files::make_private_dir;
pub use keyring::{Clock, Created, Keyring, Moment, keyring_path, needed_root};
pub use kit::{Kit, KitContents, KitHas, KitInfo, KitLine, KitSeal, Restored};
pub use life::{WAIT_DAYS_DEFAULT, WAIT_DAYS_MAX, WAIT_DAYS_MIN};
pub use masters::{
    DEFAULT_CMK_ALIAS, KeyInfo, KeyKind, KeyOrigin, KeyState, ROTATE_DAYS_DEFAULT, ROTATE_DAYS_MAX, VersionInfo,
};
pub use material::Material;
pub use root::RootSource;
pub use service::{KeyService, NewKek, Rewrapped};
pub use upkeep::{Timer, Upkept};
