//! Who is asking.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `POST /api/auth/token`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct IdentityToken {
    /// Opens what the key opens, except that it makes no tokens; as `Authorization: Bearer` or in `X-API-Key`.
    pub token: String,
    /// Seconds. It ends earlier when the key is revoked.
    pub expires_in: i64,
}

/// Answer of `GET /api/whoami`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    pub org_id: String,
    pub user_id: String,
    pub email: Option<String>,
    pub org_name: Option<String>,
}
