//! The body of an order: JSON without duplicate or unknown members, each judged as sent.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use sluice_shared::ids::SkuId;
use sluice_shared::lines::{LINES_MAX, Lines, QUANTITY_MAX};
use sluice_shared::verdict::Rejection;

/// JSON as it stands there: members in order, a whole number told from `1.0`.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Integer(u64),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
    /// Null, booleans, other numbers: nothing that an order has.
    Other,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Node, E> {
                Ok(Node::Integer(number))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Other)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Other)
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Other)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Other)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = list.next_element()? {
                    nodes.push(node);
                }
                Ok(Node::List(nodes))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Node::Object(members))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

fn read(body: &[u8]) -> Result<Vec<(String, Node)>, Rejection> {
    let node = serde_json::from_slice(body)
        .map_err(|error| Rejection::field("body", format!("the body is not JSON: {error}")))?;
    match node {
        Node::Object(members) => Ok(members),
        _ => Err(Rejection::field("body", "the body must be a JSON object")),
    }
}

/// Finds each wanted member, and refuses all others and those that stand there twice.
fn pick<const N: usize>(
    prefix: &str,
    members: Vec<(String, Node)>,
    names: [&str; N],
) -> Result<[Option<Node>; N], Rejection> {
    let mut found: [Option<Node>; N] = std::array::from_fn(|_| None);
    for (name, node) in members {
        // A long name of the client's own is not repeated to him.
        let field = || format!("{prefix}{}", name.chars().take(64).collect::<String>());
        let Some(at) = names.iter().position(|wanted| *wanted == name) else {
            let detail = format!("{} is not known; the members are {}", field(), names.join(", "));
            return Err(Rejection::field(field(), detail));
        };
        if found[at].replace(node).is_some() {
            return Err(Rejection::field(field(), format!("{} stands there twice", field())));
        }
    }
    Ok(found)
}

/// An empty body or an empty object, for calls that need none.
pub fn nothing(body: &[u8]) -> Result<(), Rejection> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    pick("", read(body)?, []).map(|_| ())
}

/// The receipt of a claim.
pub fn receipt(body: &[u8]) -> Result<String, Rejection> {
    let wrong = |what: &str| Rejection::field("receipt", format!("receipt {what}"));
    if body.is_empty() {
        return Err(Rejection::field("body", "send {\"receipt\": \"…\"}"));
    }
    match pick("", read(body)?, ["receipt"])? {
        [Some(Node::Text(text))] => Ok(text),
        [Some(_)] => Err(wrong("must be the text of a receipt")),
        [None] => Err(wrong("is missing")),
    }
}

/// The lines of an order, merged.
pub fn lines(body: &[u8]) -> Result<Lines, Rejection> {
    if body.is_empty() {
        return Err(Rejection::field("body", "send {\"sku\": …, \"quantity\": …} or {\"lines\": […]}"));
    }
    let [sku, quantity, list] = pick("", read(body)?, ["sku", "quantity", "lines"])?;
    let sent = match (sku, quantity, list) {
        (None, None, Some(list)) => each(list)?,
        (sku, quantity, None) => vec![line("", sku, quantity)?],
        (_, _, Some(_)) => {
            return Err(Rejection::field("lines", "send sku and quantity, or lines, not both"));
        }
    };
    Lines::merge(sent).map_err(|bad| Rejection::field("lines", bad.to_string()))
}

fn each(list: Node) -> Result<Vec<(SkuId, u32)>, Rejection> {
    let Node::List(list) = list else { return Err(Rejection::field("lines", "lines must be a list")) };
    if list.is_empty() || list.len() > LINES_MAX {
        return Err(Rejection::field("lines", format!("lines must have 1 to {LINES_MAX} entries")));
    }
    let one = |(at, node)| {
        let prefix = format!("lines[{at}].");
        let Node::Object(members) = node else {
            let field = format!("lines[{at}]");
            return Err(Rejection::field(field.clone(), format!("{field} must be an object")));
        };
        let [sku, quantity] = pick(&prefix, members, ["sku", "quantity"])?;
        line(&prefix, sku, quantity)
    };
    list.into_iter().enumerate().map(one).collect()
}

fn line(prefix: &str, sku: Option<Node>, quantity: Option<Node>) -> Result<(SkuId, u32), Rejection> {
    let wrong = |name: &str, must: &str| {
        let field = format!("{prefix}{name}");
        Rejection::field(field.clone(), format!("{field} {must}"))
    };
    let sku = match sku {
        Some(Node::Text(text)) => SkuId::parse(&text).ok(),
        None => return Err(wrong("sku", "is missing")),
        Some(_) => None,
    };
    let sku = sku.ok_or_else(|| wrong("sku", "must be a text that matches ^[A-Za-z0-9_-]{1,64}$"))?;
    let quantity = match quantity {
        Some(Node::Integer(n)) => u32::try_from(n).ok().filter(|n| (1..=QUANTITY_MAX).contains(n)),
        None => return Err(wrong("quantity", "is missing")),
        Some(_) => None,
    };
    let must = || wrong("quantity", &format!("must be a whole number from 1 to {QUANTITY_MAX}"));
    Ok((sku, quantity.ok_or_else(must)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sluice_shared::verdict::{Code, Extra};

    fn field(body: &str) -> String {
        let refused = lines(body.as_bytes()).unwrap_err();
        assert_eq!(refused.code, Code::BadRequest);
        match refused.extra {
            Extra::Field(field) => {
                assert!(!refused.detail.is_empty());
                field.into_owned()
            }
            other => unreachable!("{body}: {other:?}"),
        }
    }

    #[test]
    fn both_forms_of_an_order_are_read() {
        let one = lines(br#"{"sku":"phone","quantity":2}"#).unwrap();
        assert_eq!(one.to_string(), "phone=2");
        let more =
            br#" {"lines":[{"quantity":1,"sku":"b"},{"sku":"a","quantity":2},{"sku":"b","quantity":3}]} "#;
        assert_eq!(lines(more).unwrap().to_string(), "a=2,b=4");
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (body, wrong) in [
            ("", "body"),
            ("{", "body"),
            ("[]", "body"),
            ("null", "body"),
            ("{} x", "body"),
            ("{}", "sku"),
            (r#"{"sku":"phone"}"#, "quantity"),
            (r#"{"quantity":1}"#, "sku"),
            (r#"{"sku":"phone","quantity":0}"#, "quantity"),
            (r#"{"sku":"phone","quantity":-1}"#, "quantity"),
            (r#"{"sku":"phone","quantity":1.0}"#, "quantity"),
            (r#"{"sku":"phone","quantity":1e0}"#, "quantity"),
            (r#"{"sku":"phone","quantity":"1"}"#, "quantity"),
            (r#"{"sku":"phone","quantity":true}"#, "quantity"),
            (r#"{"sku":"phone","quantity":null}"#, "quantity"),
            (r#"{"sku":"phone","quantity":10001}"#, "quantity"),
            (r#"{"sku":"phone","quantity":4294967297}"#, "quantity"),
            (r#"{"sku":"phone","quantity":99999999999999999999999}"#, "quantity"),
            (r#"{"sku":"ph one","quantity":1}"#, "sku"),
            (r#"{"sku":7,"quantity":1}"#, "sku"),
            (r#"{"sku":"","quantity":1}"#, "sku"),
            (r#"{"sku":"phone","quantity":1,"quantity":1}"#, "quantity"),
            (r#"{"sku":"phone","quantity":1,"price":1}"#, "price"),
            (r#"{"Sku":"phone","quantity":1}"#, "Sku"),
            (r#"{"sku":"phone","quantity":1,"lines":[]}"#, "lines"),
            (r#"{"quantity":1,"lines":[{"sku":"a","quantity":1}]}"#, "lines"),
            (r#"{"lines":[]}"#, "lines"),
            (r#"{"lines":{}}"#, "lines"),
            (r#"{"lines":null}"#, "lines"),
            (r#"{"lines":[1]}"#, "lines[0]"),
            (r#"{"lines":[{"sku":"a","quantity":1},{"sku":"b","quantity":0}]}"#, "lines[1].quantity"),
            (
                r#"{"lines":[{"sku":"a","quantity":1},{"sku":"b","quantity":1},{"sku":"é","quantity":1}]}"#,
                "lines[2].sku",
            ),
            (r#"{"lines":[{"sku":"a","quantity":1,"sku":"a"}]}"#, "lines[0].sku"),
            (r#"{"lines":[{"sku":"a","quantity":1,"x":1}]}"#, "lines[0].x"),
        ] {
            assert_eq!(field(body), wrong, "{body}");
        }
        let line = r#"{"sku":"a","quantity":1}"#;
        let many = |n: usize| format!("{{\"lines\":[{}]}}", vec![line; n].join(","));
        assert!(lines(many(20).as_bytes()).is_ok());
        assert_eq!(field(&many(21)), "lines");
    }

    #[test]
    fn a_call_without_body_takes_an_empty_one_or_an_empty_object() {
        for good in ["", "{}", " { } "] {
            assert!(nothing(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["[]", "{\"x\":1}", "x"] {
            assert!(nothing(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_claim_is_one_text_and_nothing_else() {
        assert_eq!(receipt(br#"{"receipt":"a.b.c"}"#), Ok("a.b.c".to_owned()));
        for (body, field) in [
            ("", "body"),
            ("[]", "body"),
            ("{", "body"),
            ("{}", "receipt"),
            (r#"{"receipt":1}"#, "receipt"),
            (r#"{"receipt":null}"#, "receipt"),
            (r#"{"receipt":{}}"#, "receipt"),
            (r#"{"receipt":"a","receipt":"a"}"#, "receipt"),
            (r#"{"receipt":"a","order_id":"b"}"#, "order_id"),
        ] {
            let refused = receipt(body.as_bytes()).unwrap_err();
            assert_eq!(
                (refused.code, refused.extra),
                (Code::BadRequest, Extra::Field(field.into())),
                "{body}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (lines(&body), receipt(&body));
        }
    }
}
