//! `user.sse.last-error`: the words of each user's last refused request, because an errno cannot carry them.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Users remembered; the one whose last refusal is oldest goes first.
const USERS_MAX: usize = 256;
/// Longest text kept, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// By uid: when (a count) and what.
#[derive(Debug, Default)]
pub struct LastErrors(Mutex<(u64, HashMap<u32, (u64, String)>)>);

impl LastErrors {
    pub fn set(&self, uid: u32, mut text: String) {
        text.truncate(cut_at(&text, TEXT_BYTES_MAX));
        let mut guard = self.0.lock();
        let (clock, users) = &mut *guard;
        *clock += 1;
        if users.len() >= USERS_MAX
            && !users.contains_key(&uid)
            && let Some(oldest) = users.iter().min_by_key(|(_, (at, _))| *at).map(|(uid, _)| *uid)
        {
            users.remove(&oldest);
        }
        users.insert(uid, (*clock, text));
    }

    pub fn get(&self, uid: u32) -> Option<String> {
        self.0.lock().1.get(&uid).map(|(_, text)| text.clone())
    }
}

/// The last place up to byte `at` where a text can be cut.
fn cut_at(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_heard_of_last_are_kept_and_their_number_is_bounded() {
        let errors = LastErrors::default();
        for uid in 0..300 {
            errors.set(uid, format!("error {uid}"));
            errors.set(0, "again".into());
        }
        assert_eq!(errors.get(0).as_deref(), Some("again"));
        assert_eq!(errors.get(299).as_deref(), Some("error 299"));
        assert_eq!(errors.get(1), None);
        assert_eq!(errors.0.lock().1.len(), USERS_MAX);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let errors = LastErrors::default();
        errors.set(1, "é".repeat(TEXT_BYTES_MAX));
        assert_eq!(errors.get(1).unwrap().len(), TEXT_BYTES_MAX);
        errors.set(1, format!("x{}", "é".repeat(TEXT_BYTES_MAX)));
        assert_eq!(errors.get(1).unwrap().len(), TEXT_BYTES_MAX - 1);
    }
}
