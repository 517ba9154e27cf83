//! Queries of lists: filters, `limit` and `after`, read as strictly as bodies; and the page itself.

use axum::extract;
use axum::http::Uri;
use serde::Serialize;
use sluice_shared::verdict::Rejection;

use super::json::step;

/// Entries of a page when nothing is said.
const LIMIT: u32 = 100;
/// And at the most.
const LIMIT_MAX: u32 = 1000;

/// The parameters of a query, taken out one by one.
#[derive(Debug)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// The query of a request target; refuses a name that is there twice.
    pub fn of(uri: &Uri) -> Result<Self, Rejection> {
        let pairs = extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        let extract::Query(pairs) = pairs.map_err(|_| Rejection::field("query", "the query is malformed"))?;
        let twice = pairs.iter().enumerate().find(|(at, pair)| pairs[..*at].iter().any(|p| p.0 == pair.0));
        match twice {
            Some((_, (name, _))) => {
                let name = step(name);
                Err(Rejection::field(name.clone(), format!("{name} is there twice")))
            }
            None => Ok(Self { pairs }),
        }
    }

    /// A parameter, read as what it must be; `must` completes the sentence "NAME …".
    pub fn parsed<T>(
        &mut self,
        name: &'static str,
        must: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Rejection> {
        let Some(at) = self.pairs.iter().position(|(there, _)| there == name) else { return Ok(None) };
        let (_, text) = self.pairs.swap_remove(at);
        read(&text).map(Some).ok_or_else(|| Rejection::field(name, format!("{name} {must}")))
    }

    /// `limit`.
    pub fn limit(&mut self) -> Result<u32, Rejection> {
        let read = |text: &str| text.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
        Ok(self.parsed("limit", "must be an integer from 1 to 1000", read)?.unwrap_or(LIMIT))
    }

    /// `after`: where a page before this one ended.
    pub fn after<T>(&mut self, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Rejection> {
        self.parsed("after", "must be the `next` of a page", read)
    }

    /// Refuses what nobody has taken.
    pub fn finish(self) -> Result<(), Rejection> {
        match self.pairs.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let name = step(&name);
                let detail = format!("{name} is not known here");
                Err(Rejection::field(name, detail))
            }
        }
    }
}

/// One page of a list.
#[derive(Debug, Serialize)]
pub struct Page<T> {
    items: Vec<T>,
    next: Option<String>,
}

impl<T> Page<T> {
    /// A page of at most `limit` entries out of `found`, which has one more when there is more.
    pub fn cut(mut found: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = found.len() > limit;
        found.truncate(limit);
        let next = if more { found.last().map(cursor) } else { None };
        Self { items: found, next }
    }

    /// The same page of what is shown of its entries.
    pub fn map<U>(self, show: impl Fn(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(show).collect(), next: self.next }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, Rejection> {
        Query::of(&text.parse().unwrap())
    }

    #[test]
    fn a_query_is_read_strictly() {
        assert_eq!(query("/x").unwrap().limit(), Ok(100));
        assert_eq!(query("/x?limit=1000").unwrap().limit(), Ok(1000));
        for bad in ["0", "1001", "-1", "ten", "", "1.0"] {
            assert!(query(&format!("/x?limit={bad}")).unwrap().limit().is_err(), "{bad}");
        }
        assert!(query("/x?a=1&a=2").is_err());
        assert!(query("/x?colour=red").unwrap().finish().is_err());
        let mut user = query("/x?user=a%7Cb").unwrap();
        assert_eq!(user.parsed("user", "", |text| Some(text.to_owned())), Ok(Some("a|b".to_owned())));
        assert!(user.finish().is_ok());
    }

    #[test]
    fn the_last_page_has_no_next() {
        let page = |n: u32| Page::cut((0..n).collect(), 3, u32::to_string);
        assert_eq!((page(4).items.len(), page(4).next), (3, Some("2".to_owned())));
        assert_eq!((page(3).items.len(), page(3).next), (3, None));
    }
}
