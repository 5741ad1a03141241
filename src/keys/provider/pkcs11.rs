//! Keys of PKCS#11 tokens. The one-time secret is ours, from the kernel; the token seals it with AES-GCM under a key that
//! never leaves it. Blob: 1 | nonce 12 | ciphertext 32 | tag 16; associated data: the context.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::Zeroizing;

use super::pkcs11_uri::Pkcs11Uri;
use super::pkcs11_worker::{Trouble, run};
use super::{Context, Description, OneTime, Provider, ProviderError};
use crate::crypto::secret::{fill_random, random_id};
use crate::types::to_hex;

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const BLOB_BYTES: usize = 1 + NONCE_BYTES + 32 + TAG_BYTES;

/// A key on a token.
pub struct Pkcs11Key {
    uri: Pkcs11Uri,
}

impl Pkcs11Key {
    pub fn open(rest: &str) -> Result<Pkcs11Key, ProviderError> {
        Ok(Pkcs11Key { uri: Pkcs11Uri::parse(rest)? })
    }
}

impl Provider for Pkcs11Key {
    fn generate(&self, context: &Context<'_>) -> Result<(OneTime, Vec<u8>), ProviderError> {
        let (uri, aad) = (self.uri.clone(), context.associated_data());
        run(&self.uri, move |session| {
            let key = find(session, &uri)?;
            let secret = OneTime::random().map_err(|e| ProviderError::Setup(e.to_string()))?;
            let mut nonce = [0u8; NONCE_BYTES];
            fill_random(&mut nonce).map_err(|e| ProviderError::Setup(e.to_string()))?;
            let mut params = GcmParams::new(&mut nonce, &aad, 128.into())?;
            let mechanism = Mechanism::AesGcm(params);
            let sealed = session.encrypt(&mechanism, key, secret.expose())?;
            // Some tokens choose the nonce themselves, and say so by writing it back.
            let Mechanism::AesGcm(back) = mechanism else { return Err(answer("the mechanism changed")) };
            params = back;
            let used = params.iv().to_vec();
            if sealed.len() != 32 + TAG_BYTES || sealed[..32] == secret.expose()[..] {
                return Err(answer("the token's AES-GCM gave no ciphertext"));
            }
            Ok((secret, [&[VERSION][..], &used, &sealed].concat()))
        })
    }

    fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<OneTime, ProviderError> {
        if blob.len() != BLOB_BYTES || blob[0] != VERSION {
            return Err(ProviderError::Altered(format!("{} bytes are no blob of this service", blob.len())));
        }
        let (uri, aad, blob) = (self.uri.clone(), context.associated_data(), blob.to_vec());
        run(&self.uri, move |session| {
            let key = find(session, &uri)?;
            let mut nonce = [0u8; NONCE_BYTES];
            nonce.copy_from_slice(&blob[1..=NONCE_BYTES]);
            let params = GcmParams::new(&mut nonce, &aad, 128.into())?;
            let opened = match session.decrypt(&Mechanism::AesGcm(params), key, &blob[1 + NONCE_BYTES..]) {
                // What a wrong tag is called differs. When the key does its work otherwise, it is the blob.
                Err(Error::Pkcs11(rv, _)) if is_vague(rv) && works(session, key) => {
                    return Err(ProviderError::Altered(format!("{rv:?}")).into());
                }
                opened => Zeroizing::new(opened?),
            };
            let mut secret = Zeroizing::new([0u8; 32]);
            if opened.len() != 32 {
                return Err(answer("the token gave no secret of 32 bytes"));
            }
            secret.copy_from_slice(&opened);
            Ok(OneTime::take(&mut secret))
        })
    }

    fn describe(&self) -> Result<Description, ProviderError> {
        let uri = self.uri.clone();
        run(&self.uri, move |session| {
            let key = find(session, &uri)?;
            described(session, key, &uri)
        })
    }
}

/// Return codes of C_Decrypt that say nothing about why.
fn is_vague(rv: RvError) -> bool {
    matches!(rv, RvError::GeneralError | RvError::FunctionFailed | RvError::DataInvalid | RvError::DeviceError)
}

/// Whether the key opens what it has just sealed.
fn works(session: &Session, key: ObjectHandle) -> bool {
    let (mut nonce, mut again) = ([0u8; NONCE_BYTES], [0u8; NONCE_BYTES]);
    if fill_random(&mut nonce).is_err() {
        return false;
    }
    let Ok(params) = GcmParams::new(&mut nonce, b"works", 128.into()) else { return false };
    let mechanism = Mechanism::AesGcm(params);
    let Ok(sealed) = session.encrypt(&mechanism, key, &[0; 32]) else { return false };
    let Mechanism::AesGcm(mut used) = mechanism else { return false };
    again.copy_from_slice(used.iv());
    let Ok(params) = GcmParams::new(&mut again, b"works", 128.into()) else { return false };
    session.decrypt(&Mechanism::AesGcm(params), key, &sealed).is_ok_and(|opened| opened == [0; 32])
}

fn answer(why: &str) -> Trouble {
    Trouble::Answer(ProviderError::Unreachable(why.to_owned()))
}

/// Objects that the URI means.
fn all(session: &Session, uri: &Pkcs11Uri) -> Result<Vec<ObjectHandle>, Trouble> {
    let mut template = vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true)];
    template.extend(uri.object.as_ref().map(|o| Attribute::Label(o.as_bytes().to_vec())));
    template.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
    Ok(session.find_objects(&template)?)
}

/// The one key that the URI means.
fn find(session: &Session, uri: &Pkcs11Uri) -> Result<ObjectHandle, Trouble> {
    match all(session, uri)?[..] {
        [key] => Ok(key),
        [] => Err(Trouble::NoKey(format!("{} holds no {}", uri.token, object(uri)))),
        _ => Err(ProviderError::Setup(format!("{} holds more than one {}: add id=", uri.token, object(uri))).into()),
    }
}

fn object(uri: &Pkcs11Uri) -> String {
    let name = uri.object.as_ref().map(|o| format!(" {o:?}")).unwrap_or_default();
    let id = uri.id.as_ref().map(|id| format!(" with id {}", to_hex(id))).unwrap_or_default();
    format!("secret key{name}{id}")
}

/// Refuses a key that could not do, or that could leave the token.
fn described(session: &Session, key: ObjectHandle, uri: &Pkcs11Uri) -> Result<Description, Trouble> {
    use AttributeType::{Decrypt, Encrypt, Extractable, KeyType as Type, Sensitive};
    let mut of_what = None;
    for attribute in session.get_attributes(key, &[Type, Encrypt, Decrypt, Extractable, Sensitive])? {
        let wrong = match attribute {
            Attribute::KeyType(KeyType::AES) => None,
            Attribute::KeyType(_) => Some("is no AES key"),
            Attribute::Encrypt(false) | Attribute::Decrypt(false) => Some("may not encrypt and decrypt"),
            Attribute::Extractable(true) => Some("can be taken out of the token (CKA_EXTRACTABLE)"),
            Attribute::Sensitive(false) => Some("can be read (CKA_SENSITIVE is false)"),
            _ => None,
        };
        of_what = of_what.or(wrong);
    }
    match of_what {
        Some(why) => Err(ProviderError::Setup(format!("the {} of {} {why}", object(uri), uri.token)).into()),
        None => {
            Ok(Description { key: format!("{};{}", uri.token, object(uri)), detail: uri.module.display().to_string() })
        }
    }
}

/// Looks the key up; makes it if it is named by `object=` (or not at all), is not there, and may be made.
pub fn settle(rest: &str, may_make: bool) -> Result<(String, Description, bool), ProviderError> {
    let uri = Pkcs11Uri::parse(rest)?;
    let asked = uri.clone();
    let named = uri.object.is_some() || uri.id.is_some();
    let there = run(&uri, move |session| {
        if !named {
            return Ok(None);
        }
        match all(session, &asked)?[..] {
            [] if may_make && asked.id.is_none() => Ok(None),
            _ => {
                let key = find(session, &asked)?;
                Ok(Some((id_of(session, key, &asked)?, described(session, key, &asked)?)))
            }
        }
    })?;
    let made = there.is_none();
    let settled = match there {
        Some((id, description)) => (Pkcs11Uri { id, ..uri }, description),
        None if may_make => make(&uri)?,
        None => return Err(ProviderError::Setup("name the key with object= or id=".into())),
    };
    Ok((settled.0.to_string(), settled.1, made))
}

/// Its CKA_ID; a key without one is known by its label.
fn id_of(session: &Session, key: ObjectHandle, uri: &Pkcs11Uri) -> Result<Option<Vec<u8>>, Trouble> {
    let id = session.get_attributes(key, &[AttributeType::Id])?.into_iter().find_map(|a| match a {
        Attribute::Id(id) if !id.is_empty() => Some(id),
        _ => None,
    });
    if id.is_none() && uri.object.is_none() {
        return Err(ProviderError::Setup("the key has neither label nor id: give it one".into()).into());
    }
    Ok(id)
}

/// A new key beside that of `rest`: same token, same label, an id of its own.
pub fn make_next(rest: &str) -> Result<String, ProviderError> {
    Ok(make(&Pkcs11Uri::parse(rest)?)?.0.to_string())
}

/// Destroys the key, which nobody has used yet.
pub fn destroy(rest: &str) -> Result<(), ProviderError> {
    let uri = Pkcs11Uri::parse(rest)?;
    let there = uri.clone();
    run(&uri, move |session| match all(session, &there)?[..] {
        [key] => Ok(session.destroy_object(key)?),
        _ => Ok(()),
    })
}

fn make(uri: &Pkcs11Uri) -> Result<(Pkcs11Uri, Description), ProviderError> {
    let id = random_id().map_err(|e| ProviderError::Setup(e.to_string()))?;
    let object = uri.object.clone().unwrap_or_else(|| format!("ssefs-{}", to_hex(&id[..4])));
    let new = Pkcs11Uri { object: Some(object.clone()), id: Some(id.to_vec()), ..uri.clone() };
    let there = new.clone();
    let description = run(uri, move |session| {
        // Asked twice after a lost session: the first may have made it.
        let key = match all(session, &there)?[..] {
            [key, ..] => key,
            [] => session.generate_key(
                &Mechanism::AesKeyGen,
                &[
                    Attribute::Class(ObjectClass::SECRET_KEY),
                    Attribute::KeyType(KeyType::AES),
                    Attribute::ValueLen(32.into()),
                    Attribute::Label(object.as_bytes().to_vec()),
                    Attribute::Id(id.to_vec()),
                    Attribute::Token(true),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(false),
                    Attribute::Encrypt(true),
                    Attribute::Decrypt(true),
                    Attribute::Wrap(false),
                    Attribute::Unwrap(false),
                    Attribute::Sign(false),
                    Attribute::Verify(false),
                ],
            )?,
        };
        described(session, key, &there)
    })?;
    Ok((new, description))
}
