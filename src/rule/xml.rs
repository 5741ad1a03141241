//! Rules as XML, both shapes that the vendors use: Alibaba's `ServerSideEncryptionRule` and the
//! `ServerSideEncryptionConfiguration` of AWS, Tencent and JD. What a rule has no place for is refused with its
//! line rather than ignored: an ignored element could be the one that mattered.

use roxmltree::{Document, Error as XmlError, Node, ParsingOptions};

use super::dialect::{Dialect, XmlForm};
use super::error::{Position, RuleError, quoted};
use super::model::{Fields, Rule};

/// Most nodes (elements, texts, comments) of a rule's XML; a rule needs about 20.
pub const XML_NODES_MAX: u32 = 1000;

const AWS_NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
const XSI_NAMESPACE: &str = "http://www.w3.org/2001/XMLSchema-instance";
const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";

/// Reads one rule. The namespace is free (each vendor has its own, and clients leave it out), but one for all.
pub(super) fn parse(text: &str) -> Result<Rule, RuleError> {
    let options = ParsingOptions { nodes_limit: XML_NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| not_well_formed(text, &e))?;
    if let Some(pi) = document.root().children().find(Node::is_pi) {
        return Err(refuse(pi, "a processing instruction has no place in a rule"));
    }
    let root = document.root_element();
    check_attributes(root)?;
    match root.tag_name().name() {
        "ServerSideEncryptionRule" => {
            let [by_default] = children(root, ["ApplyServerSideEncryptionByDefault"])?;
            by_default_rule(root, by_default, |algorithm| algorithm)
        }
        "ServerSideEncryptionConfiguration" => {
            let [rule] = children(root, ["Rule"])?;
            let rule = rule.ok_or_else(|| refuse(root, "there is no <Rule>"))?;
            let [by_default, bucket_key] = children(rule, ["ApplyServerSideEncryptionByDefault", "BucketKeyEnabled"])?;
            if let Some(element) = bucket_key {
                // Read and dropped: every bucket here has a bucket key (row 54).
                if !matches!(value(element)?, "true" | "false") {
                    return Err(refuse(element, "BucketKeyEnabled is neither true nor false"));
                }
            }
            by_default_rule(rule, by_default, algorithm_of_configuration)
        }
        _ => Err(refuse(
            root,
            &format!(
                "<{}> is no rule: use <ServerSideEncryptionRule> or <ServerSideEncryptionConfiguration>",
                quoted(root.tag_name().name())
            ),
        )),
    }
}

/// The spellings of KMS that AWS, JD (`aws:kms`) and Tencent's older clients (`cos/kms`) put into a configuration.
pub(super) fn algorithm_of_configuration(algorithm: &str) -> &str {
    match algorithm {
        "aws:kms" | "cos/kms" => "KMS",
        other => other,
    }
}

fn by_default_rule<'a>(
    parent: Node<'a, '_>,
    by_default: Option<Node<'a, '_>>,
    spelling: fn(&'a str) -> &'a str,
) -> Result<Rule, RuleError> {
    let by_default = by_default
        .ok_or_else(|| refuse(parent, "there is no <ApplyServerSideEncryptionByDefault>: SSEAlgorithm is required"))?;
    // No vendor but Alibaba documents KMSDataEncryption. It is read in both shapes because a cos bucket may use
    // SM4 and has to print that; where a dialect has no SM4, the dialect refuses it.
    let [algorithm, key, data_encryption] =
        children(by_default, ["SSEAlgorithm", "KMSMasterKeyID", "KMSDataEncryption"])?;
    let algorithm = algorithm.map(value).transpose()?.filter(|text| !text.is_empty());
    let algorithm = algorithm.ok_or_else(|| refuse(by_default, "SSEAlgorithm is required"))?;
    Fields {
        algorithm: spelling(algorithm),
        key: key.map(value).transpose()?,
        data_encryption: data_encryption.map(value).transpose()?,
    }
    .into_rule()
}

/// The child elements of `parent` by name, each at most once; comments and white space between them are free.
fn children<'a, 'i, const N: usize>(
    parent: Node<'a, 'i>,
    names: [&str; N],
) -> Result<[Option<Node<'a, 'i>>; N], RuleError> {
    let mut found = [None; N];
    for child in parent.children() {
        if child.is_comment() {
            continue;
        }
        if child.is_text() {
            let text = child.text().unwrap_or_default();
            if !text.trim_ascii().is_empty() {
                // The text may begin on a line before the one with the garbage. References and CDATA make the
                // column a guess, so only the line is told.
                let blank = text.len() - text.trim_ascii_start().len();
                let offset = child.range().start.saturating_add(blank);
                let at = Position::of_byte(child.document().input_text().as_bytes(), offset);
                return Err(RuleError::malformed(at, format!("text between elements: {}", quoted(text.trim_ascii()))));
            }
            continue;
        }
        if !child.is_element() {
            return Err(refuse(child, "a processing instruction has no place in a rule"));
        }
        let name = child.tag_name().name();
        let known = names.iter().position(|known| *known == name);
        let slot = match known {
            Some(index) if child.tag_name().namespace() == parent.tag_name().namespace() => &mut found[index],
            _ => {
                let (name, parent) = (quoted(name), quoted(parent.tag_name().name()));
                return Err(refuse(child, &format!("unknown element <{name}> in <{parent}>")));
            }
        };
        if slot.is_some() {
            return Err(refuse(child, &format!("a second <{name}>: a rule has one")));
        }
        check_attributes(child)?;
        *slot = Some(child);
    }
    Ok(found)
}

/// The text of an element that holds nothing else, without the white space around it.
fn value<'a>(element: Node<'a, '_>) -> Result<&'a str, RuleError> {
    let mut children = element.children();
    match (children.next(), children.next()) {
        (None, _) => Ok(""),
        (Some(only), None) if only.is_text() => Ok(only.text().unwrap_or_default().trim_ascii()),
        (Some(first), second) => {
            let odd = if first.is_text() { second.unwrap_or(first) } else { first };
            Err(refuse(odd, &format!("<{}> holds text only", quoted(element.tag_name().name()))))
        }
    }
}

/// Attributes say nothing about a rule; those that only describe the document are let through.
fn check_attributes(element: Node<'_, '_>) -> Result<(), RuleError> {
    for attribute in element.attributes() {
        let describes = match attribute.namespace() {
            Some(XML_NAMESPACE) => true,
            Some(XSI_NAMESPACE) => matches!(attribute.name(), "schemaLocation" | "noNamespaceSchemaLocation" | "type"),
            _ => false,
        };
        if !describes {
            let at = position(element, attribute.range().start);
            let (name, element) = (quoted(attribute.name()), quoted(element.tag_name().name()));
            return Err(RuleError::malformed(at, format!("unknown attribute {name} of <{element}>")));
        }
    }
    Ok(())
}

fn refuse(node: Node<'_, '_>, what: &str) -> RuleError {
    RuleError::malformed(position(node, node.range().start), what)
}

fn position(node: Node<'_, '_>, offset: usize) -> Position {
    let at = node.document().text_pos_at(offset);
    Position { line: at.row, column: Some(at.col) }
}

fn not_well_formed(text: &str, error: &XmlError) -> RuleError {
    let end = Position::of_byte(text.as_bytes(), text.trim_ascii_end().len());
    match error {
        XmlError::DtdDetected => {
            let start = text.find("<!DOCTYPE").unwrap_or(0);
            RuleError::malformed(Position::of_byte(text.as_bytes(), start), "a document type has no place in a rule")
        }
        XmlError::NoRootNode => RuleError::malformed(end, "there is no element"),
        XmlError::UnclosedRootNode | XmlError::UnexpectedEndOfStream => {
            RuleError::malformed(end, "the text ends inside an element")
        }
        XmlError::NodesLimitReached | XmlError::AttributesLimitReached | XmlError::NamespacesLimitReached => {
            RuleError::malformed(Position::line(1), "far more elements than a rule has")
        }
        other => {
            let at = other.pos();
            // The parser ends its message with the position, which ours begins with.
            let full = other.to_string();
            let what = full.rsplit_once(" at ").map_or(full.as_str(), |(what, _)| what);
            RuleError::malformed(Position { line: at.row, column: Some(at.col) }, quoted(what))
        }
    }
}

/// Prints a rule in the shape of `dialect`, with an XML declaration and a final newline. What it prints,
/// [`super::parse`] reads back as the same rule.
///
/// # Errors
/// [`RuleError::NoneHasNoXml`]; [`RuleError::NotInDialect`] for a rule that `dialect` has no words for.
pub fn print_xml(rule: &Rule, dialect: Dialect) -> Result<String, RuleError> {
    if *rule == Rule::None {
        return Err(RuleError::NoneHasNoXml);
    }
    dialect.check_anywhere(rule)?;
    let form = dialect.xml_form();
    let algorithm = match (rule, form) {
        (Rule::Kms { .. }, XmlForm::Aws) => "aws:kms",
        (Rule::Kms { .. }, XmlForm::Oss | XmlForm::Cos) => "KMS",
        (Rule::None | Rule::Aes256, _) => "AES256",
    };
    let mut lines =
        vec!["<ApplyServerSideEncryptionByDefault>".to_owned(), format!("  <SSEAlgorithm>{algorithm}</SSEAlgorithm>")];
    if let Some(key) = rule.key() {
        lines.push(format!("  <KMSMasterKeyID>{}</KMSMasterKeyID>", escape(key)));
    }
    // AES256 is what an absent element means (row 51).
    if let Some("SM4") = rule.data_encryption() {
        lines.push("  <KMSDataEncryption>SM4</KMSDataEncryption>".to_owned());
    }
    lines.push("</ApplyServerSideEncryptionByDefault>".to_owned());
    let lines = match form {
        XmlForm::Oss => within("ServerSideEncryptionRule", "", lines),
        XmlForm::Cos | XmlForm::Aws => {
            let namespace = if dialect == Dialect::Aws { format!(" xmlns=\"{AWS_NAMESPACE}\"") } else { String::new() };
            within("ServerSideEncryptionConfiguration", &namespace, within("Rule", "", lines))
        }
    };
    Ok(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", lines.join("\n")))
}

fn within(name: &str, attributes: &str, lines: Vec<String>) -> Vec<String> {
    let mut out = vec![format!("<{name}{attributes}>")];
    out.extend(lines.into_iter().map(|line| format!("  {line}")));
    out.push(format!("</{name}>"));
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
