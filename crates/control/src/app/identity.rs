//! Who the caller is, told back to them.

use warren_api::identity::Whoami;

use super::auth::Caller;

/// A key stands for its organisation; there are no people behind it that we know of, so its own id is the user's.
pub(crate) fn whoami(caller: &Caller) -> Whoami {
    Whoami {
        org_id: caller.org().to_string(),
        user_id: caller.key_id().to_owned(),
        email: None,
        org_name: Some(caller.org_name().to_owned()),
    }
}
