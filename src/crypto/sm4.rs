//! SM4-GCM (RFC 8998, GB/T 32907) with 96-bit nonces and 128-bit tags. libgcrypt does it where the system has it: seven
//! times as fast as the pure Rust crate, which stands in for it elsewhere, and each is the other's oracle. libgcrypt is
//! loaded at run time, so that neither building nor starting ssefs needs it.

use super::CryptoError;
use super::gcm::{GcmBackend, TAG_BYTES};
use super::secret::ChunkKey;
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, AesGcm, KeyInit};
use parking_lot::Mutex;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use zeroize::Zeroizing;

/// Bytes of an SM4 key.
const KEY_BYTES: usize = 16;

/// One key on the fastest library at hand.
pub enum Sm4Gcm {
    Gcrypt(Gcrypt),
    PureRust(Box<PureRust>),
}

impl Sm4Gcm {
    /// SM4 takes the first 16 bytes of the chunk key.
    pub fn new(key: &ChunkKey) -> Self {
        match Gcrypt::new(key) {
            Some(gcrypt) => Sm4Gcm::Gcrypt(gcrypt),
            None => Sm4Gcm::PureRust(Box::new(PureRust::new(key))),
        }
    }

    /// The library that this process uses, for benchmarks and the log.
    pub fn library() -> String {
        match library() {
            Some(lib) => format!("libgcrypt {}", lib.version),
            None => "sm4 crate".into(),
        }
    }
}

impl GcmBackend for Sm4Gcm {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], content: &[u8], ciphertext: &mut [u8]) -> [u8; TAG_BYTES] {
        match self {
            Sm4Gcm::Gcrypt(g) => g.seal(nonce, aad, content, ciphertext),
            Sm4Gcm::PureRust(p) => p.seal(nonce, aad, content, ciphertext),
        }
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
        content: &mut [u8],
    ) -> Result<(), CryptoError> {
        match self {
            Sm4Gcm::Gcrypt(g) => g.open(nonce, aad, ciphertext, tag, content),
            Sm4Gcm::PureRust(p) => p.open(nonce, aad, ciphertext, tag, content),
        }
    }
}

/// SM4-GCM of the sm4 and aes-gcm crates.
pub struct PureRust(AesGcm<sm4::Sm4, U12>);

impl PureRust {
    pub fn new(key: &ChunkKey) -> Self {
        let mut short = Zeroizing::new([0u8; KEY_BYTES]);
        short.copy_from_slice(&key.expose()[..KEY_BYTES]);
        PureRust(AesGcm::new((&*short).into()))
    }
}

impl GcmBackend for PureRust {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], content: &[u8], ciphertext: &mut [u8]) -> [u8; TAG_BYTES] {
        let buffer = InOutBuf::new(content, ciphertext).expect("lengths are equal");
        self.0.encrypt_inout_detached(nonce.into(), aad, buffer).expect("below GCM's limit").into()
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
        content: &mut [u8],
    ) -> Result<(), CryptoError> {
        let buffer = InOutBuf::new(ciphertext, &mut *content).expect("lengths are equal");
        self.0.decrypt_inout_detached(nonce.into(), aad, buffer, tag.into()).map_err(|_| {
            content.fill(0);
            CryptoError::Damaged
        })
    }
}

type Handle = *mut c_void;

/// The calls of libgcrypt that are used (its manual, Symmetric cryptography), and the library they belong to.
struct Library {
    version: String,
    open: unsafe extern "C" fn(*mut Handle, c_int, c_int, c_uint) -> c_uint,
    close: unsafe extern "C" fn(Handle),
    set_key: unsafe extern "C" fn(Handle, *const u8, usize) -> c_uint,
    set_iv: unsafe extern "C" fn(Handle, *const u8, usize) -> c_uint,
    authenticate: unsafe extern "C" fn(Handle, *const u8, usize) -> c_uint,
    encrypt: unsafe extern "C" fn(Handle, *mut u8, usize, *const u8, usize) -> c_uint,
    decrypt: unsafe extern "C" fn(Handle, *mut u8, usize, *const u8, usize) -> c_uint,
    get_tag: unsafe extern "C" fn(Handle, *mut u8, usize) -> c_uint,
    check_tag: unsafe extern "C" fn(Handle, *const u8, usize) -> c_uint,
    _library: libloading::Library,
}

// From gcrypt.h.
const GCRY_CIPHER_SM4: c_int = 318;
const GCRY_CIPHER_MODE_GCM: c_int = 9;
const GCRYCTL_DISABLE_SECMEM: c_int = 37;
const GCRYCTL_INITIALIZATION_FINISHED: c_int = 38;
const GCRYCTL_INITIALIZATION_FINISHED_P: c_int = 39;
/// The version whose SM4 is fast.
const VERSION_MIN: &CStr = c"1.10.0";

/// libgcrypt, loaded and made ready once; None where it is missing, older than 1.10, or does not allow SM4.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<&'static Library>> = OnceLock::new();
    *LIBRARY.get_or_init(|| load().filter(|l| self_test(l)))
}

/// Loaded once and never unloaded.
fn load() -> Option<&'static Library> {
    // SAFETY: libgcrypt's initialisers have no demands; the signatures are those of gcrypt.h of its ABI 20, and the symbols
    // live as long as `_library`, which is never dropped.
    unsafe {
        let library = libloading::Library::new("libgcrypt.so.20").ok()?;
        let check_version: unsafe extern "C" fn(*const c_char) -> *const c_char =
            *library.get(b"gcry_check_version").ok()?;
        let control: unsafe extern "C" fn(c_int, ...) -> c_uint = *library.get(b"gcry_control").ok()?;
        let version = check_version(VERSION_MIN.as_ptr());
        if version.is_null() {
            return None;
        }
        // Somebody else in this process may have made it ready.
        if control(GCRYCTL_INITIALIZATION_FINISHED_P) == 0 {
            control(GCRYCTL_DISABLE_SECMEM, 0 as c_int);
            control(GCRYCTL_INITIALIZATION_FINISHED, 0 as c_int);
        }
        Some(Box::leak(Box::new(Library {
            version: CStr::from_ptr(version).to_string_lossy().into_owned(),
            open: *library.get(b"gcry_cipher_open").ok()?,
            close: *library.get(b"gcry_cipher_close").ok()?,
            set_key: *library.get(b"gcry_cipher_setkey").ok()?,
            set_iv: *library.get(b"gcry_cipher_setiv").ok()?,
            authenticate: *library.get(b"gcry_cipher_authenticate").ok()?,
            encrypt: *library.get(b"gcry_cipher_encrypt").ok()?,
            decrypt: *library.get(b"gcry_cipher_decrypt").ok()?,
            get_tag: *library.get(b"gcry_cipher_gettag").ok()?,
            check_tag: *library.get(b"gcry_cipher_checktag").ok()?,
            _library: library,
        })))
    }
}

/// A library that does not compute what the crate computes is not used.
fn self_test(library: &'static Library) -> bool {
    let key = ChunkKey::take(&mut [7; 32]);
    let (content, mut ours, mut theirs) = ([5u8; 100], [0u8; 100], [0u8; 100]);
    let tag = PureRust::new(&key).seal(&[1; 12], b"aad", &content, &mut ours);
    let Some(mut context) = Context::new(library, &key) else { return false };
    context.seal(&[1; 12], b"aad", &content, &mut theirs) == Some(tag) && ours == theirs
}

/// A context of libgcrypt with a key set. One thread at a time uses it; closing wipes it.
struct Context {
    library: &'static Library,
    handle: Handle,
}

// SAFETY: libgcrypt's handles have no affinity to a thread; `&mut self` keeps them to one at a time.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the handle is open and not used afterwards.
        unsafe { (self.library.close)(self.handle) }
    }
}

impl Context {
    fn new(library: &'static Library, key: &ChunkKey) -> Option<Context> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: plain calls with valid pointers and their lengths.
        unsafe {
            if (library.open)(&raw mut handle, GCRY_CIPHER_SM4, GCRY_CIPHER_MODE_GCM, 0) != 0 {
                return None;
            }
            let context = Context { library, handle };
            ((library.set_key)(handle, key.expose().as_ptr(), KEY_BYTES) == 0).then_some(context)
        }
    }

    /// None if libgcrypt refuses.
    fn seal(&mut self, nonce: &[u8; 12], aad: &[u8], content: &[u8], out: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let (l, mut tag) = (self.library, [0u8; TAG_BYTES]);
        // SAFETY: plain calls with valid pointers and their lengths; setting the nonce begins a new message.
        let done = unsafe {
            (l.set_iv)(self.handle, nonce.as_ptr(), nonce.len()) == 0
                && (l.authenticate)(self.handle, aad.as_ptr(), aad.len()) == 0
                && (l.encrypt)(self.handle, out.as_mut_ptr(), out.len(), content.as_ptr(), content.len()) == 0
                && (l.get_tag)(self.handle, tag.as_mut_ptr(), tag.len()) == 0
        };
        done.then_some(tag)
    }

    /// Whether the tag is right; `out` holds content only then. None if libgcrypt refuses.
    fn open(
        &mut self,
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
        out: &mut [u8],
    ) -> Option<bool> {
        let l = self.library;
        // SAFETY: as in `seal`.
        unsafe {
            let ready = (l.set_iv)(self.handle, nonce.as_ptr(), nonce.len()) == 0
                && (l.authenticate)(self.handle, aad.as_ptr(), aad.len()) == 0
                && (l.decrypt)(self.handle, out.as_mut_ptr(), out.len(), ciphertext.as_ptr(), ciphertext.len()) == 0;
            ready.then(|| (l.check_tag)(self.handle, tag.as_ptr(), tag.len()) == 0)
        }
    }
}

/// SM4-GCM of libgcrypt. A context serves one thread, so as many are made as threads meet here.
pub struct Gcrypt {
    library: &'static Library,
    key: ChunkKey,
    idle: Mutex<Vec<Context>>,
}

impl Gcrypt {
    /// None where the library is not to be had.
    pub fn new(key: &ChunkKey) -> Option<Gcrypt> {
        let library = library()?;
        let mut copy = Zeroizing::new(*key.expose());
        let first = Context::new(library, key)?;
        Some(Gcrypt { library, key: ChunkKey::take(&mut copy), idle: Mutex::new(vec![first]) })
    }

    /// Lends a context to `f`. None if none can be made, or `f` says that it failed.
    fn with<T>(&self, f: impl FnOnce(&mut Context) -> Option<T>) -> Option<T> {
        let idle = self.idle.lock().pop();
        let mut context = match idle {
            Some(context) => context,
            None => Context::new(self.library, &self.key)?,
        };
        let done = f(&mut context);
        self.idle.lock().push(context);
        done
    }
}

impl GcmBackend for Gcrypt {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], content: &[u8], ciphertext: &mut [u8]) -> [u8; TAG_BYTES] {
        self.with(|c| c.seal(nonce, aad, content, ciphertext))
            // Out of memory, or a policy that forbids SM4 meanwhile: the crate does the same.
            .unwrap_or_else(|| PureRust::new(&self.key).seal(nonce, aad, content, ciphertext))
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
        content: &mut [u8],
    ) -> Result<(), CryptoError> {
        match self.with(|c| c.open(nonce, aad, ciphertext, tag, content)) {
            Some(true) => Ok(()),
            Some(false) => {
                content.fill(0);
                Err(CryptoError::Damaged)
            }
            None => PureRust::new(&self.key).open(nonce, aad, ciphertext, tag, content),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{from_hex, to_hex};
    use proptest::prelude::*;

    /// RFC 8998, appendix A.1.
    fn vector(gcm: &impl GcmBackend) {
        let nonce: [u8; 12] = from_hex("00001234567800000000abcd").unwrap();
        let aad: [u8; 20] = from_hex("feedfacedeadbeeffeedfacedeadbeefabaddad2").unwrap();
        let content: Vec<u8> = [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0xee, 0xaa].iter().flat_map(|b| [*b; 8]).collect();
        let mut ciphertext = vec![0u8; 64];
        let tag = gcm.seal(&nonce, &aad, &content, &mut ciphertext);
        let want = "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735\
                    d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d";
        assert_eq!(to_hex(&ciphertext), want);
        assert_eq!(to_hex(&tag), "83de3541e4c2b58177e065a9bf7b62ec");
        let mut out = vec![0xee; 64];
        gcm.open(&nonce, &aad, &ciphertext, &tag, &mut out).unwrap();
        assert_eq!(out, content);
        for bit in 0..128 {
            let mut bad = tag;
            bad[bit / 8] ^= 1 << (bit % 8);
            out.fill(0xee);
            assert_eq!(gcm.open(&nonce, &aad, &ciphertext, &bad, &mut out), Err(CryptoError::Damaged));
            assert!(out.iter().all(|&b| b == 0), "nothing of a refused chunk is left");
        }
    }

    fn rfc_key() -> ChunkKey {
        let mut key = [0xa5; 32];
        key[..16].copy_from_slice(&from_hex::<16>("0123456789abcdeffedcba9876543210").unwrap());
        ChunkKey::take(&mut key)
    }

    #[test]
    fn rfc_8998_vector_holds_in_the_pure_rust_crates() {
        vector(&PureRust::new(&rfc_key()));
    }

    #[test]
    fn rfc_8998_vector_holds_in_libgcrypt_where_there_is_one() {
        match Gcrypt::new(&rfc_key()) {
            Some(gcrypt) => vector(&gcrypt),
            None => eprintln!("no libgcrypt 1.10 or newer here"),
        }
        vector(&Sm4Gcm::new(&rfc_key()));
    }

    #[test]
    fn many_threads_may_use_one_key() {
        let gcm = Sm4Gcm::new(&rfc_key());
        std::thread::scope(|s| {
            for t in 0..8u8 {
                let gcm = &gcm;
                s.spawn(move || {
                    for i in 0..200u8 {
                        let (content, mut sealed, mut out) = ([t ^ i; 500], [0; 500], [0; 500]);
                        let tag = gcm.seal(&[i; 12], &[t], &content, &mut sealed);
                        gcm.open(&[i; 12], &[t], &sealed, &tag, &mut out).unwrap();
                        assert_eq!(out, content);
                    }
                });
            }
        });
    }

    proptest! {
        #[test]
        fn both_libraries_compute_the_same(
            key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(), aad in prop::collection::vec(any::<u8>(), 0..80),
            content in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let key = ChunkKey::take(&mut key.clone());
            let (mut a, mut b) = (vec![0; content.len()], vec![0; content.len()]);
            let one = Sm4Gcm::new(&key).seal(&nonce, &aad, &content, &mut a);
            let other = PureRust::new(&key).seal(&nonce, &aad, &content, &mut b);
            prop_assert_eq!((one, a), (other, b));
        }
    }
}
