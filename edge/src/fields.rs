//! Header fields, wherever they were read.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Every answer of ours has one; the client's where it sent a sane one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The fields of one head. Names are given in lower case.
pub trait Fields {
    /// The values of all fields of that name, in their order.
    fn all<'f>(&'f self, name: &'f str) -> impl DoubleEndedIterator<Item = &'f [u8]>;

    /// The value of the first field of that name.
    fn field<'f>(&'f self, name: &'f str) -> Option<&'f [u8]> {
        self.all(name).next()
    }
}

impl Fields for HeaderMap {
    fn all<'f>(&'f self, name: &'f str) -> impl DoubleEndedIterator<Item = &'f [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }
}

/// A head as the parser leaves it: names in whatever case.
impl Fields for [httparse::Header<'_>] {
    fn all<'f>(&'f self, name: &'f str) -> impl DoubleEndedIterator<Item = &'f [u8]> {
        self.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}
