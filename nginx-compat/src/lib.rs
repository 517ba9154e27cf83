//! NGINX's configuration language, as nginx 1.22.1 reads it.
//!
//! [`load`] reads a configuration with everything it includes into a [`tree`] that loses no byte.
//! [`check`] walks the tree beside the [`table`] of directives: it finds the errors that `nginx -t`
//! finds, in its words, and says of each directive what becomes of it here. Nothing is executed yet.
//!
//! No function of this crate opens a connection or writes a file, and none panics, whatever it is given.

mod check;
mod lexer;
mod load;
mod lua;
mod parser;
mod problem;
mod rows;
mod rule;
pub mod table;
pub mod tree;
pub mod value;

pub use check::{Checked, Found, check};
pub use load::{Options, load};
pub use parser::parse;
pub use problem::{Error, Problem};
