//! Tags.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// Answer of `GET` and `PUT …/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxTags {
    pub tags: BTreeMap<String, String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "to_the_millisecond")]
    pub tags_last_updated_at: Option<Timestamp>,
}

/// Answer of `GET /api/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TagKeys {
    pub keys: Vec<TagKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagKey {
    pub key: String,
    pub sandbox_count: u64,
    pub value_count: u64,
}

/// As clients of the hosted service know it: always three digits behind the seconds.
pub(crate) fn to_the_millisecond<S: Serializer>(
    at: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(&format_args!("{at:.3}")),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (at, text) in [(1_999_999, "1.999"), (1_820_000, "1.820"), (2_000_000, "2.000")] {
            let at = Timestamp::from_microsecond(at).unwrap();
            let tags = SandboxTags { tags: BTreeMap::new(), tags_last_updated_at: Some(at) };
            let json = serde_json::to_value(&tags).unwrap();
            assert_eq!(json["tagsLastUpdatedAt"], format!("1970-01-01T00:00:0{text}Z"));
        }
    }
}
