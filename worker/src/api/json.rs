//! Bodies, read strictly: no key twice, no unknown key, `1.0` is no integer, and whatever is wrong is
//! named by its path (`items[0].price`).

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use sluice_shared::verdict::Rejection;

use self::wanted::Wanted;

mod wanted;

/// Any JSON text, with the order and the repetition of its keys.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number written without fraction or exponent that fits.
    Integer(i64),
    /// Any other number.
    Number,
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Number, Json::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

impl Json {
    /// Reads a body; refuses what is no JSON and any object that names a key twice.
    pub fn parse(body: &[u8]) -> Result<Self, Rejection> {
        let json: Self = serde_json::from_slice(body)
            .map_err(|error| Rejection::field("body", format!("the body is not JSON: {error}")))?;
        json.refuse_twins("")?;
        Ok(json)
    }

    fn refuse_twins(&self, path: &str) -> Result<(), Rejection> {
        match self {
            Self::List(values) => values
                .iter()
                .enumerate()
                .try_for_each(|(at, value)| value.refuse_twins(&format!("{path}[{at}]"))),
            Self::Object(members) => {
                let mut seen = HashSet::new();
                members.iter().try_for_each(|(name, value)| {
                    let path = join(path, name);
                    if !seen.insert(name) {
                        return Err(Rejection::field(path.clone(), format!("{path} is there twice")));
                    }
                    value.refuse_twins(&path)
                })
            }
            _ => Ok(()),
        }
    }
}

/// What a time must be.
pub const TIME: &str = "must be a time from 1970 to 9999 such as 2026-11-21T04:00:00.000Z";
/// Characters of a name that an answer repeats, at the most.
const NAME_MAX: usize = 64;

/// A name that somebody else has chosen, as a step of a path: one that is no plain word is quoted, so that
/// it can be seen.
pub fn step(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain) {
        return name.to_owned();
    }
    let mut seen: String = name.chars().take(NAME_MAX).collect();
    if seen.len() < name.len() {
        seen.push('…');
    }
    format!("[{seen:?}]")
}

fn join(path: &str, name: &str) -> String {
    let step = step(name);
    let dot = if path.is_empty() || step.starts_with('[') { "" } else { "." };
    format!("{path}{dot}{step}")
}

/// An object whose members are taken out one by one; what is left at the end is unknown.
#[derive(Debug)]
pub struct Members {
    path: String,
    members: Vec<(String, Json)>,
}

impl Members {
    /// The members of a body.
    pub fn of_body(body: &[u8]) -> Result<Self, Rejection> {
        Self::of(Json::parse(body)?, "")
    }

    /// Those members of a body that are asked for; none of them twice, and the others are not looked at.
    pub fn of_known(body: &[u8], names: &[&'static str]) -> Result<Self, Rejection> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let members = Wanted(names).deserialize(&mut reader).and_then(|members| {
            reader.end()?;
            Ok(members)
        });
        let members = members
            .map_err(|error| Rejection::field("body", format!("the body is no such JSON object: {error}")))?;
        let object = Json::Object(members);
        object.refuse_twins("")?;
        Self::of(object, "")
    }

    /// The members of a value at a path.
    pub fn of(value: Json, path: &str) -> Result<Self, Rejection> {
        match value {
            Json::Object(members) => Ok(Self { path: path.to_owned(), members }),
            _ => {
                let name = if path.is_empty() { "body" } else { path };
                Err(Rejection::field(name.to_owned(), format!("{name} must be a JSON object")))
            }
        }
    }

    /// The path of a member.
    pub fn path(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// `bad_request` for a member: `what` completes the sentence "NAME …".
    pub fn wrong(&self, name: &str, what: impl fmt::Display) -> Rejection {
        let path = self.path(name);
        let detail = format!("{path} {what}");
        Rejection::field(path, detail)
    }

    /// Takes a member out.
    pub fn take(&mut self, name: &str) -> Option<Json> {
        let at = self.members.iter().position(|(member, _)| member == name)?;
        Some(self.members.swap_remove(at).1)
    }

    /// A string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Rejection> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "must be a string")),
        }
    }

    /// A string that is read further; `must` completes the sentence "NAME …".
    pub fn parsed<T>(
        &mut self,
        name: &str,
        must: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Rejection> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        read(&text).map(Some).ok_or_else(|| self.wrong(name, must))
    }

    /// A text for people: not empty, of so many characters at the most, none of them control.
    pub fn prose(&mut self, name: &str, most: usize) -> Result<Option<String>, Rejection> {
        let must = format!("must have 1 to {most} characters, none of them control");
        self.parsed(name, &must, |text| {
            let good = (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control);
            good.then(|| text.to_owned())
        })
    }

    /// A whole number within a range.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Rejection> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Integer(n)) if range.contains(&n) => Ok(Some(n)),
            Some(_) => {
                let (low, high) = (range.start(), range.end());
                Err(self.wrong(name, format_args!("must be an integer from {low} to {high}")))
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Rejection> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "must be true or false")),
        }
    }

    /// A list.
    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Json>>, Rejection> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::List(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(name, "must be a list")),
        }
    }

    /// What must be there.
    pub fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, Rejection> {
        value.ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// Refuses what nobody has taken.
    pub fn finish(self) -> Result<(), Rejection> {
        match self.members.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.wrong(name, "is not known here")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use sluice_shared::verdict::Extra;

    fn field(rejection: &Rejection) -> &str {
        match &rejection.extra {
            Extra::Field(field) => field,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_named_by_its_path() {
        let body = br#"{"items":[{"sku":"a"},{"sku":"b","sku":"c"}]}"#;
        assert_eq!(field(&Members::of_body(body).unwrap_err()), "items[1].sku");
    }

    #[test]
    fn only_integers_are_integers() {
        for bad in ["1.0", "1e2", "\"1\"", "true", "null", "9223372036854775808", "11", "[1]"] {
            let mut body = Members::of_body(format!("{{\"n\":{bad}}}").as_bytes()).unwrap();
            assert_eq!(field(&body.integer("n", 0..=10).unwrap_err()), "n", "{bad}");
        }
        let mut body = Members::of_body(br#"{"n":10}"#).unwrap();
        assert_eq!(body.integer("n", 0..=10), Ok(Some(10)));
        assert!(body.finish().is_ok());
    }

    #[test]
    fn an_unknown_member_is_refused_by_name() {
        assert_eq!(field(&Members::of_body(br#"{"colour":1}"#).unwrap().finish().unwrap_err()), "colour");
    }

    #[test]
    fn a_name_that_is_no_plain_word_is_quoted() {
        for (body, path) in [
            (r#"{"":1}"#, r#"[""]"#),
            (r#"{"a b":1}"#, r#"["a b"]"#),
            (r#"{"a\u0000":1}"#, r#"["a\0"]"#),
            (r#"{"a.b":1}"#, r#"["a.b"]"#),
        ] {
            assert_eq!(field(&Members::of_body(body.as_bytes()).unwrap().finish().unwrap_err()), path);
        }
        let long = format!("{{\"{}\":1}}", "é".repeat(10_000));
        let told = Members::of_body(long.as_bytes()).unwrap().finish().unwrap_err();
        assert_eq!(field(&told).chars().count(), 64 + 5);
        let inner = Members::of(Json::Object(vec![(String::new(), Json::Null)]), "items[0]").unwrap();
        assert_eq!(field(&inner.finish().unwrap_err()), r#"items[0][""]"#);
        assert_eq!(field(&Members::of_body(br#"{"a":{"":1,"":2}}"#).unwrap_err()), r#"a[""]"#);
    }

    #[test]
    fn what_is_not_asked_for_may_be_anything() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for more in ["1e999", r#""\ud83d""#, "-0.0e-9", r#"{"a":1,"a":2}"#, &deep] {
            let body = format!(r#"{{"a":"x","more":{more},"\ud83d":{more},"more":{more},"b":1e999}}"#);
            let mut members = Members::of_known(body.as_bytes(), &["a"]).unwrap();
            assert_eq!(members.text("a").unwrap().as_deref(), Some("x"), "{more}");
            assert!(members.finish().is_ok());
        }
        for (bad, path) in [
            (r#"{"a":1,"a":1}"#, "a"),
            (r#"{"a":1e999}"#, "body"),
            (r#"{"a":"\ud83d"}"#, "body"),
            (r#"{"a":1}x"#, "body"),
            (r#"{"b":1,}"#, "body"),
            (r#"{"b":+1}"#, "body"),
            ("[]", "body"),
            ("", "body"),
        ] {
            assert_eq!(field(&Members::of_known(bad.as_bytes(), &["a"]).unwrap_err()), path, "{bad}");
        }
    }

    #[test]
    fn what_is_no_object_is_the_bodys_fault() {
        for bad in ["", "{", "[]", "1", "{}x", "\u{feff}{}"] {
            assert_eq!(field(&Members::of_body(bad.as_bytes()).unwrap_err()), "body", "{bad}");
        }
    }
}
