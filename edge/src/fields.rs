//! Header fields, wherever they were read.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The fields of one head.
pub trait Fields {
    /// The values of all fields of that name, in their order.
    fn all<'f>(&'f self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'f [u8]> + use<'f, Self>;

    /// The value of the first field of that name.
    fn field(&self, name: &HeaderName) -> Option<&[u8]> {
        self.all(name).next()
    }
}

impl Fields for HeaderMap {
    fn all<'f>(&'f self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'f [u8]> + use<'f> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }
}

/// A head as the parser leaves it: names in whatever case.
impl<'b> Fields for [httparse::Header<'b>] {
    fn all<'f>(&'f self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'f [u8]> + use<'f, 'b> {
        let name = name.clone();
        let named = move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name.as_str());
        self.iter().filter(named).map(|field| field.value)
    }
}
