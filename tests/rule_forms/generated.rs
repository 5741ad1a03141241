//! Properties held over generated rules, near-rules and bytes.

use super::*;
use proptest::prelude::*;
use ssefs::rule::print_xml;

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        "[!-9;-~]{1,40}",
        "arn:aws:kms:[a-z0-9-]{1,9}:[0-9]{12}:(key|alias)/[A-Za-z0-9_-]{1,36}",
        Just("SM4".to_owned()),
        Just("AES256".to_owned()),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::None),
        Just(Rule::Aes256),
        (proptest::option::of(any_key()), any::<bool>()).prop_map(|(key, sm4)| Rule::Kms { key, sm4 }),
    ]
}

/// Text that gets further than the first byte: a good rule in one of its forms with one piece put in or over it.
fn nearly_a_rule() -> impl Strategy<Value = Vec<u8>> {
    let piece = proptest::sample::select(vec![
        "",
        "",
        " ",
        "\n",
        "<",
        ">",
        "/>",
        "\"",
        "{",
        "}",
        "[",
        ":",
        ",",
        "&",
        "&#0;",
        "&#10;",
        "&lt;",
        "<!--",
        "-->",
        "<!---->",
        "<![CDATA[ ]]>",
        "<?a?>",
        "<!DOCTYPE a>",
        "KMS",
        "SM4",
        ":SM4",
        "none",
        "<Rule/>",
        "é",
        "\u{feff}",
        "\0",
        " xmlns=\"a\"",
        " a=\"b\"",
    ]);
    (any_rule(), 0..7_usize, any::<prop::sample::Index>(), 0..9_usize, piece).prop_map(
        |(rule, form, at, over, piece)| {
            let mut text = match Dialect::ALL.get(form).map(|dialect| print_xml(&rule, *dialect)) {
                Some(Ok(xml)) => xml.into_bytes(),
                None if form == 5 => {
                    let (algorithm, key) = (rule.algorithm().unwrap_or("none"), rule.key());
                    let fields = serde_json::json!({"SSEAlgorithm": algorithm, "KMSMasterKeyID": key});
                    s3api_json(fields.to_string().trim_matches(['{', '}'])).into_bytes()
                }
                _ => rule.to_string().into_bytes(),
            };
            let start = at.index(text.len());
            let end = (start + over).min(text.len());
            text.splice(start..end, piece.bytes());
            text
        },
    )
}

proptest! {
    // A case that fails becomes a fixture or a test of its own, not a line in a seed file.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rule_comes_back_from_its_short_form_and_its_xml(rule in any_rule()) {
        prop_assert_eq!(&rule.to_string().parse::<Rule>().unwrap(), &rule);
        for dialect in Dialect::ALL {
            let read = parse(rule.to_string().as_bytes(), dialect);
            match print_xml(&rule, dialect) {
                Ok(xml) => {
                    prop_assert_eq!(read.as_ref(), Ok(&rule));
                    prop_assert_eq!(parse(xml.as_bytes(), dialect), Ok(rule.clone()), "{}", xml);
                }
                Err(RuleError::NoneHasNoXml) => prop_assert_eq!(&rule, &Rule::None),
                Err(error) => prop_assert_eq!(read, Err(error)),
            }
        }
    }

    #[test]
    fn whatever_is_read_prints_as_something_that_reads_the_same(bytes in nearly_a_rule()) {
        if let Ok(rule) = parse(&bytes, Dialect::Native) {
            prop_assert_eq!(parse(rule.to_string().as_bytes(), Dialect::Native), Ok(rule));
        }
    }

    #[test]
    fn a_short_form_of_any_fields_is_read_stably_or_refused(fields in "(KMS|AES256|none)(:[!-~]{0,9}){0,4}") {
        if let Ok(rule) = fields.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), first in "[<{\\[KA]?") {
        for dialect in Dialect::ALL {
            for text in [bytes.clone(), [first.as_bytes(), &bytes].concat()] {
                if let Err(error) = parse(&text, dialect) {
                    prop_assert!(!error.message().contains('\n'));
                }
            }
        }
    }
}
