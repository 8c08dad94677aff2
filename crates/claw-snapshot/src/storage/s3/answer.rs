//! The XML of answers. Only what is needed is understood, and all of that must be there.

use quick_xml::Reader;
use quick_xml::events::Event;

use super::fault::S3Fault;

/// A page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Keys and sizes in bytes.
    pub(super) objects: Vec<(String, u64)>,
    /// Where the next page begins; nothing when this is the last one.
    pub(super) next: Option<String>,
}

/// One element that has text: its path without the root, and the text.
type Leaf = (String, String);

/// A listing that is not whole is an error.
pub(super) fn page(body: &[u8]) -> Result<Page, S3Fault> {
    let malformed = S3Fault::Answer("a listing that is cut off or no listing");
    let mut page = Page::default();
    let mut truncated = None;
    let mut key = None;
    let leaves = leaves(body, "ListBucketResult").ok_or_else(|| malformed.clone())?;
    for (path, text) in leaves {
        match path.as_str() {
            "IsTruncated" => truncated = text.parse::<bool>().ok(),
            "NextContinuationToken" => page.next = Some(text),
            "Contents/Key" if key.is_none() => key = Some(text),
            "Contents/Key" => return Err(malformed),
            "Contents/Size" => {
                // In the order of the schema, and of every storage that was tried.
                let key = key.take().ok_or_else(|| malformed.clone())?;
                page.objects.push((key, text.parse().map_err(|_| malformed.clone())?));
            }
            _ => {}
        }
    }
    match (truncated, page.next.is_some(), key) {
        (Some(true), true, None) => Ok(page),
        (Some(false), _, None) => Ok(Page { next: None, ..page }),
        _ => Err(malformed),
    }
}

/// The word for what is wrong; empty when the answer has none.
pub(super) fn code(body: &[u8]) -> String {
    let leaves = leaves(body, "Error").unwrap_or_default();
    let code = leaves.into_iter().find_map(|(path, text)| (path == "Code").then_some(text));
    let plain = |code: &String| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    // It goes into messages, so it must be one word.
    code.filter(plain).unwrap_or_default()
}

/// Every element with text in it, when the document has this root and is whole.
fn leaves(body: &[u8], root: &str) -> Option<Vec<Leaf>> {
    let mut reader = Reader::from_str(std::str::from_utf8(body).ok()?);
    let mut leaves = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(element) => {
                let name: &str = element.local_name().into_inner();
                if path.is_empty() && name != root {
                    return None;
                }
                path.push(name.to_owned());
                text.clear();
            }
            Event::Text(part) => text.push_str(&part.xml10_content()),
            Event::CData(part) => text.push_str(&part.into_inner()),
            Event::GeneralRef(reference) => text.push_str(&resolve(&reference)?),
            Event::End(_) => {
                if !text.trim().is_empty() {
                    let below = path.get(1..).unwrap_or_default();
                    leaves.push((below.join("/"), std::mem::take(&mut text)));
                }
                path.pop()?;
                text.clear();
                if path.is_empty() {
                    return Some(leaves);
                }
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

fn resolve(reference: &quick_xml::events::BytesRef<'_>) -> Option<String> {
    if let Some(character) = reference.resolve_char_ref().ok()? {
        return Some(character.to_string());
    }
    quick_xml::escape::resolve_xml_entity(&reference.xml10_content()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Name>bucket</Name><Prefix>a</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys>
  <IsTruncated>true</IsTruncated>
  <Contents><Key>a/1&amp;&#50;</Key><LastModified>x</LastModified><ETag>&quot;e&quot;</ETag>
    <Size>7</Size><Owner><ID>Key</ID></Owner></Contents>
  <Contents><Key>a/2</Key><Size>0</Size></Contents>
  <NextContinuationToken>t+/=</NextContinuationToken>
</ListBucketResult>"#;

    #[test]
    fn a_page_is_understood() {
        let expected = Page {
            objects: vec![("a/1&2".to_owned(), 7), ("a/2".to_owned(), 0)],
            next: Some("t+/=".to_owned()),
        };
        assert_eq!(page(LIST.as_bytes()).unwrap(), expected);
        let last = LIST.replace("true", "false");
        assert_eq!(page(last.as_bytes()).unwrap(), Page { next: None, ..expected });
    }

    #[test]
    fn half_a_page_is_none() {
        for length in 0..LIST.len() {
            assert!(page(LIST.as_bytes().get(..length).unwrap()).is_err(), "{length}");
        }
        for (from, to) in [
            ("<IsTruncated>true</IsTruncated>", ""),
            ("<NextContinuationToken>t+/=</NextContinuationToken>", ""),
            ("<Size>7</Size>", ""),
            ("<Size>7</Size>", "<Size>x</Size>"),
            ("ListBucketResult", "html"),
        ] {
            assert!(page(LIST.replace(from, to).as_bytes()).is_err(), "{from} {to}");
        }
        assert!(page(b"\xff").is_err());
    }

    #[test]
    fn a_code_is_one_word() {
        let body = b"<Error><Code>NoSuchKey</Code><Message>x</Message></Error>";
        assert_eq!(code(body), "NoSuchKey");
        assert_eq!(code(b"<Error><Code>a b\nc</Code></Error>"), "");
        assert_eq!(code(b"<html><Code>x</Code></html>"), "");
        assert_eq!(code(b""), "");
    }
}
