//! Text within XML.

/// A text as content or as the value of an attribute. What XML cannot hold at all is shown as such.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'.. => escaped.push(c),
            _ => escaped.push(char::REPLACEMENT_CHARACTER),
        }
    }
    escaped
}

/// The beginning of a text that is longer than `most` characters.
pub(super) fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_and_control_characters_are_replaced() {
        assert_eq!(escape("a<b>&\"c\""), "a&lt;b&gt;&amp;&#34;c&#34;");
        assert_eq!(escape("\u{1b}[0m\u{ffff}é\n😀"), "\u{fffd}[0m\u{fffd}é\n😀");
        assert_eq!((shorten("été", 3), shorten("étés", 3)), ("été".to_owned(), "été…".to_owned()));
    }
}
