//! Secret stores, and the secrets in them. Values go in and never come out.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;
use warren_types::Secret;

/// Body of `POST /api/secret-stores`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretStoreCreate {
    /// Unique in the organisation; sandboxes are given a store by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Hosts that sandboxes with this store may reach: `example.com`, `*.example.com`, `*`. None stands for no restriction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_allowlist: Option<Vec<String>>,
}

/// Body of `PUT /api/secret-stores/{store}`: what is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretStoreChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An empty list ends the restriction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_allowlist: Option<Vec<String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretStore {
    pub id: String,
    pub org_id: String,
    pub name: String,
    pub egress_allowlist: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A secret, without its value.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretEntry {
    pub id: String,
    pub store_id: String,
    /// Also the environment variable that holds its token inside.
    pub name: String,
    /// Where it is put in; none stands for every host that the sandbox may reach.
    pub allowed_hosts: Vec<String>,
    /// *Additive.* Parts of a request it is put into: `header`, `query`, `body`.
    #[serde(default)]
    pub places: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// Body of `PUT …/secrets/{name}`. Of a secret that is there, what is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretSet {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose",
        deserialize_with = "enclose"
    )]
    #[schema(value_type = Option<String>, write_only)]
    pub value: Option<Secret<String>>,
    /// Hosts it is put in for: `example.com`, `*.example.com`, `*`. An empty list stands for every host that is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_hosts: Option<Vec<String>>,
    /// *Additive.* Parts of a request it is put into: `header` (when absent), `query`, `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<Vec<String>>,
}

/// Answer of `PUT …/secrets/{name}`: strings only, because clients read it so.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretStored {
    pub name: String,
    /// `set`.
    pub status: String,
    /// Sandboxes that have the new value now.
    #[serde(default)]
    pub refreshed: String,
    /// *Additive.* Sandboxes whose node could not be told; it is tried again. Absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
}

/// *Additive.* Requests of one minute that a secret was put into.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretUse {
    /// The last of them.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub host: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    pub count: u64,
}

fn expose<S: Serializer>(value: &Option<Secret<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(|value| value.expose().as_str()).serialize(serializer)
}

/// Says of what is no string only that: serde would repeat it in the error.
fn enclose<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret<String>>, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(value) => Ok(Some(Secret::new(value))),
        _ => Err(serde::de::Error::custom("it must be a string")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_sent_and_never_printed() {
        let set: SecretSet = serde_json::from_str(r#"{"value":"hunter2"}"#).unwrap();
        assert!(!format!("{set:?}").contains("hunter2"));
        assert_eq!(serde_json::to_string(&set).unwrap(), r#"{"value":"hunter2"}"#);
        let error = serde_json::from_str::<SecretSet>(r#"{"value":12345}"#).unwrap_err().to_string();
        assert!(!error.contains("12345") && error.contains("must be a string"), "{error}");
        assert!(serde_json::from_str::<SecretSet>(r#"{"value":null}"#).unwrap().value.is_none());
    }
}
