//! One thread a module, which alone calls it: it opens sessions, logs in, and begins again when a session, a token or
//! the whole module was lost. Whoever asks waits for a bounded time, however long the module takes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use parking_lot::Mutex;

use super::pin::{Pin, PinSource};
use super::pkcs11_uri::{Pkcs11Uri, TokenIs};
use super::{ProviderError, quoted};

/// Jobs that may wait for one module.
const WAITING_MAX: usize = 256;

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// Runs `job` on the thread of the URI's module, with a session of its token.
pub fn run<T: Send + 'static>(
    uri: &Pkcs11Uri,
    job: impl Fn(&Session) -> Result<T, Trouble> + Send + 'static,
) -> Result<T, ProviderError> {
    let late =
        || ProviderError::Unreachable(format!("{} gave no answer within {} s", uri.token, uri.timeout.as_secs()));
    let end = Instant::now() + uri.timeout;
    let (answer, answered) = bounded(1);
    let uri_there = uri.clone();
    let job: Job = Box::new(move |worker: &mut Worker| {
        // Nobody waits any more: do not use up the token's time as well.
        if Instant::now() < end {
            let _ = answer.send(worker.with_session(&uri_there, &job));
        }
    });
    let worker = worker(&uri.module)?;
    worker.send_timeout(job, uri.timeout).map_err(|_| late())?;
    match answered.recv_timeout(end.saturating_duration_since(Instant::now())) {
        Ok(done) => done,
        Err(crossbeam_channel::RecvTimeoutError::Timeout) => Err(late()),
        Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
            Err(ProviderError::Unreachable(format!("the module of {} failed", uri.token)))
        }
    }
}

/// The thread of a module, started when first needed (so never before a fork) and there until the process ends.
fn worker(module: &Path) -> Result<Sender<Job>, ProviderError> {
    static WORKERS: OnceLock<Mutex<HashMap<PathBuf, Sender<Job>>>> = OnceLock::new();
    let mut workers = WORKERS.get_or_init(Mutex::default).lock();
    if let Some(jobs) = workers.get(module) {
        return Ok(jobs.clone());
    }
    let (jobs, todo) = bounded::<Job>(WAITING_MAX);
    let mut worker =
        Worker { path: module.to_owned(), module: None, sessions: HashMap::new(), refused: HashMap::new() };
    std::thread::Builder::new()
        .name("ssefs-pkcs11".into())
        .spawn(move || {
            for job in todo {
                // A panic in a job is its own; the one who asked hears that nobody answered.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&mut worker))).is_err() {
                    worker.forget_all();
                }
            }
        })
        .map_err(|e| ProviderError::Unreachable(format!("no thread for the module: {e}")))?;
    workers.insert(module.to_owned(), jobs.clone());
    Ok(jobs)
}

/// Why a job failed.
pub enum Trouble {
    /// An error of the module.
    Module(Error),
    /// Its own answer, which no new session would change.
    Answer(ProviderError),
    /// The key was not found, which may be because the token is not there any more.
    NoKey(String),
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Trouble {
        Trouble::Module(e)
    }
}

impl From<ProviderError> for Trouble {
    fn from(e: ProviderError) -> Trouble {
        Trouble::Answer(e)
    }
}

struct Worker {
    path: PathBuf,
    module: Option<Pkcs11>,
    sessions: HashMap<(TokenIs, String), Session>,
    /// PINs that a token has refused: tried again they would lock it.
    refused: HashMap<TokenIs, Pin>,
}

impl Worker {
    /// Runs a job; once more with everything anew when what failed may be the session, the token or the module.
    fn with_session<T>(
        &mut self,
        uri: &Pkcs11Uri,
        job: &dyn Fn(&Session) -> Result<T, Trouble>,
    ) -> Result<T, ProviderError> {
        let first = self.session(uri).map_err(Trouble::from).and_then(job);
        let again = match first {
            Ok(done) => return Ok(done),
            Err(Trouble::Answer(e)) if !matches!(e, ProviderError::Unreachable(_)) => return Err(e),
            Err(Trouble::Module(Error::Pkcs11(rv, _))) if is_answer(rv) => return Err(answer_of(rv)),
            Err(again) => again,
        };
        self.forget_all();
        let second = self.session(uri).map_err(Trouble::from).and_then(job);
        match (second, again) {
            (Ok(done), _) => Ok(done),
            (Err(Trouble::Answer(e)), _) => Err(e),
            (Err(Trouble::NoKey(what)), _) => Err(ProviderError::Gone(what)),
            (Err(Trouble::Module(e)), _) => Err(self.failure(uri, &e)),
        }
    }

    fn failure(&self, uri: &Pkcs11Uri, e: &Error) -> ProviderError {
        match e {
            Error::Pkcs11(rv, _) if is_answer(*rv) => answer_of(*rv),
            e => ProviderError::Unreachable(quoted(&format!("{}: {e}", uri.token))),
        }
    }

    /// Closes all sessions and the module.
    fn forget_all(&mut self) {
        self.sessions.clear();
        if let Some(module) = self.module.take() {
            let _ = module.finalize();
        }
    }

    fn module(&mut self) -> Result<&Pkcs11, ProviderError> {
        let path = self.path.display().to_string();
        let setup = |e: &Error| ProviderError::Setup(quoted(&format!("the PKCS#11 module {path}: {e}")));
        if self.module.is_none() {
            let module = Pkcs11::new(&self.path).map_err(|e| setup(&e))?;
            match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
                Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(e) => return Err(setup(&e)),
            }
            self.module = Some(module);
        }
        self.module.as_ref().ok_or_else(|| ProviderError::Setup("the PKCS#11 module is not loaded".into()))
    }

    /// The one slot whose token is the one asked for.
    fn slot(&mut self, token: &TokenIs) -> Result<(Slot, bool), ProviderError> {
        let module = self.module()?;
        let unreachable = |e: Error| ProviderError::Unreachable(quoted(&format!("{token}: {e}")));
        let mut found = None;
        for slot in module.get_slots_with_token().map_err(unreachable)? {
            // A token that does not answer is not the one.
            let Ok(info) = module.get_token_info(slot) else { continue };
            let is = |asked: &Option<String>, has: &str| asked.as_ref().is_none_or(|a| a == has.trim_end());
            let matches = info.token_initialized()
                && is(&token.token, info.label())
                && is(&token.serial, info.serial_number())
                && is(&token.manufacturer, info.manufacturer_id())
                && is(&token.model, info.model())
                && token.slot.is_none_or(|s| s == slot.id());
            if matches {
                if found.is_some() {
                    return Err(ProviderError::Setup(format!("more than one token is {token}: add serial=")));
                }
                if info.user_pin_locked() {
                    return Err(ProviderError::Refused(format!("{token}: its PIN is locked")));
                }
                found = Some((slot, info.login_required()));
            }
        }
        found.ok_or_else(|| ProviderError::Unreachable(format!("there is no token {token}: is it plugged in?")))
    }

    fn session(&mut self, uri: &Pkcs11Uri) -> Result<&Session, ProviderError> {
        let place = (uri.token.clone(), uri.pin.as_ref().map(PinSource::to_string).unwrap_or_default());
        if !self.sessions.contains_key(&place) {
            let (slot, login) = self.slot(&uri.token)?;
            let unreachable = |e: Error| ProviderError::Unreachable(quoted(&format!("{}: {e}", uri.token)));
            let session = self.module()?.open_rw_session(slot).map_err(unreachable)?;
            if login {
                self.login(&session, uri)?;
            }
            self.sessions.insert(place.clone(), session);
        }
        self.sessions.get(&place).ok_or_else(|| ProviderError::Unreachable("no session".into()))
    }

    fn login(&mut self, session: &Session, uri: &Pkcs11Uri) -> Result<(), ProviderError> {
        let token = &uri.token;
        let source = uri.pin.as_ref().ok_or_else(|| {
            ProviderError::Setup(format!("{token} wants a PIN: add pin-source=file:/PATH, fd:N or env:NAME"))
        })?;
        let pin = source.read()?;
        if self.refused.get(token).is_some_and(|refused| *refused == pin) {
            return Err(ProviderError::Refused(format!(
                "{token} has refused the PIN from {source}; it is not tried again, so that the token is not locked"
            )));
        }
        match session.login(UserType::User, Some(&AuthPin::from(pin.to_string()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                self.refused.remove(token);
                Ok(())
            }
            Err(Error::Pkcs11(rv @ (RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange), _)) => {
                self.refused.insert(token.clone(), pin);
                Err(ProviderError::Refused(format!("{token}: the PIN from {source} is wrong ({rv:?})")))
            }
            Err(Error::Pkcs11(rv @ (RvError::PinLocked | RvError::PinExpired | RvError::UserPinNotInitialized), _)) => {
                Err(ProviderError::Refused(format!("{token}: {rv:?}")))
            }
            Err(e) => Err(ProviderError::Unreachable(quoted(&format!("{token}: {e}")))),
        }
    }
}

/// Errors that are the token's word on what was asked, and not trouble with reaching it.
fn is_answer(rv: RvError) -> bool {
    use RvError::*;
    matches!(
        rv,
        EncryptedDataInvalid
            | EncryptedDataLenRange
            | MechanismInvalid
            | MechanismParamInvalid
            | KeyFunctionNotPermitted
            | KeyTypeInconsistent
            | KeySizeRange
            | ActionProhibited
            | AttributeReadOnly
            | AttributeTypeInvalid
            | AttributeValueInvalid
            | TemplateInconsistent
            | TemplateIncomplete
            | TokenWriteProtected
            | DeviceMemory
    )
}

fn answer_of(rv: RvError) -> ProviderError {
    match rv {
        RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange => ProviderError::Altered(format!("{rv:?}")),
        rv => ProviderError::Refused(format!("{rv:?}")),
    }
}
