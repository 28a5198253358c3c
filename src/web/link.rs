//! Links: names as components of a path.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text as one component of a path, or as a value in a query.
pub(super) fn component(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_a_url_is_encoded() {
        assert_eq!(component("a-b.c_d~e"), "a-b.c_d~e");
        assert_eq!(component("gtk+ 1/2%é?"), "gtk%2B%201%2F2%25%C3%A9%3F");
    }
}
