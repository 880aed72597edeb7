//! Who is asking.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/whoami`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    pub org_id: String,
    pub user_id: String,
    pub email: Option<String>,
    pub org_name: Option<String>,
}
