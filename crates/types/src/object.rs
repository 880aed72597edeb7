//! Objects in JSON. What serde derives for a struct takes a list of the values of its fields as well, so that `[]` would be one in
//! which nothing is said: a policy that allows everything, say.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

struct Object<T>(PhantomData<T>);

/// For `deserialize_with` of a field that may be absent or null.
///
/// # Errors
/// When it is there and no object, or not one of these.
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_option(Object(PhantomData))
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EgressPolicy;

    #[derive(Debug, Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "optional")]
        egress: Option<EgressPolicy>,
    }

    #[test]
    fn a_list_is_no_object() {
        let read = |text: &str| serde_json::from_str::<Body>(text).map(|body| body.egress);
        assert_eq!(read("{}").unwrap(), None);
        assert_eq!(read(r#"{"egress": null}"#).unwrap(), None);
        assert_eq!(read(r#"{"egress": {}}"#).unwrap(), Some(EgressPolicy::default()));
        assert!(read(r#"{"egress": {"mode": "none"}}"#).unwrap().is_some());
        for text in ["[]", r#"["none"]"#, "true", "1", r#""none""#] {
            let error = read(&format!("{{\"egress\": {text}}}")).unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{text}: {error}");
        }
        assert!(read(r#"{"egress": {"mdoe": "none"}}"#).unwrap_err().to_string().contains("mdoe"));
    }
}
