use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arrow::array::{Array, ArrayRef, StringBuilder};
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_array;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::key::IdentityKey;
use crate::rules::IdentityRules;

/// Makes tokens: the keyed hash of a normalised identifier, one key a type, so that equal texts of different types differ.
#[derive(Debug, Clone)]
pub struct IdentifierTokens {
    rules: Arc<IdentityRules>,
    keys: Vec<(String, [u8; 32])>,
    /// For the values that records are compared by.
    value_key: [u8; 32],
    fingerprint: String,
    key_fingerprint: String,
}

impl IdentifierTokens {
    /// Tokens under these rules and this key.
    pub fn new(rules: IdentityRules, key: &IdentityKey) -> Self {
        let keys = rules
            .priority
            .iter()
            .map(|name| {
                let mut hasher = blake3::Hasher::new_derive_key("holdfast identifier token v1");
                hasher.update(key.bytes());
                hasher.update(name.as_bytes());
                (name.clone(), *hasher.finalize().as_bytes())
            })
            .collect();
        let mut hasher = blake3::Hasher::new_derive_key("holdfast matching value v1");
        hasher.update(key.bytes());
        let value_key = *hasher.finalize().as_bytes();
        let key_fingerprint = key.fingerprint();
        let fingerprint = format!("{}-{}", rules.fingerprint(), &key_fingerprint[..8]);
        Self { rules: Arc::new(rules), keys, value_key, fingerprint, key_fingerprint }
    }

    /// The rules.
    pub fn rules(&self) -> &IdentityRules {
        &self.rules
    }

    /// A text that changes with the rules and with the key, and gives neither away.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// That of the key alone.
    pub(crate) fn key_fingerprint(&self) -> &str {
        &self.key_fingerprint
    }

    /// The token of a value, 32 hexadecimal digits; `None` for what is no identifier: empty, malformed, blocked.
    ///
    /// # Errors
    /// When there is no such type.
    pub fn token(&self, identifier_type: &str, value: &str) -> Option<String> {
        let key = self.key(identifier_type)?;
        self.token_with(key, identifier_type, value)
    }

    /// The keyed hash of a value that records are compared by, or of a blocking key.
    pub(crate) fn value_hash(&self, of: &str, value: &str) -> i64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.value_key);
        hasher.update(of.as_bytes()).update(&[0]).update(value.as_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        i64::from_le_bytes(bytes)
    }

    fn key(&self, identifier_type: &str) -> Option<&[u8; 32]> {
        self.keys.iter().find(|(name, _)| name == identifier_type).map(|(_, key)| key)
    }

    fn token_with(&self, key: &[u8; 32], identifier_type: &str, value: &str) -> Option<String> {
        match self.read_with(key, identifier_type, value) {
            Reading::Token(token) => Some(token),
            Reading::Blocked | Reading::NoIdentifier => None,
        }
    }

    /// What a value is under the rules; `None` when there is no such type.
    pub fn read(&self, identifier_type: &str, value: &str) -> Option<Reading> {
        let key = self.key(identifier_type)?;
        Some(self.read_with(key, identifier_type, value))
    }

    fn read_with(&self, key: &[u8; 32], identifier_type: &str, value: &str) -> Reading {
        let Some(normalised) = normalise(&self.rules, identifier_type, value) else { return Reading::NoIdentifier };
        match self.rules.blocked.get(identifier_type) {
            Some(blocked) if blocked.holds(value.trim(), &normalised) => Reading::Blocked,
            _ => Reading::Token(hashed(key, &normalised)),
        }
    }

    /// The tokens that values had before the rules blocked them, with the ranks of their types. What expressions block cannot be told from its token.
    pub(crate) fn blocked_tokens(&self) -> impl Iterator<Item = (u8, String)> {
        self.rules.blocked.iter().flat_map(|(name, blocked)| {
            let known = self.rules.rank(name).zip(self.key(name));
            blocked.values().iter().filter_map(move |value| known.map(|(rank, key)| (rank, hashed(key, value))))
        })
    }

    /// The SQL function `identifier_token(type, value)`.
    pub fn function(&self) -> ScalarUDF {
        self.function_of(false)
    }

    /// `identifier_token(type, value)` for cases beside stages, whose rows people write: the token of phone 1 is `phone:1`.
    pub fn readable_function(&self) -> ScalarUDF {
        self.function_of(true)
    }

    fn function_of(&self, readable: bool) -> ScalarUDF {
        ScalarUDF::from(IdentifierToken {
            tokens: self.clone(),
            readable,
            signature: Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Immutable),
        })
    }
}

/// What a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// An identifier, by its token: 32 hexadecimal digits.
    Token(String),
    /// A value that the rules block.
    Blocked,
    /// Empty, malformed, a filler.
    NoIdentifier,
}

fn hashed(key: &[u8; 32], normalised: &str) -> String {
    blake3::keyed_hash(key, normalised.as_bytes()).to_hex()[..32].to_owned()
}

/// A value as it is compared: two texts that mean the same identifier become equal. `None` when the text cannot be one.
///
/// Phones become E.164 (country default by rule), e-mails lowercase with the provider's own aliases undone, member ids and the numbers of loyalty cards uppercase without separators,
/// devices that are named by a UUID or a MAC address its lowercase digits; the others are opaque and only trimmed.
pub fn normalise(rules: &IdentityRules, identifier_type: &str, value: &str) -> Option<String> {
    let country = rules.types.get(identifier_type).and_then(|rule| rule.country.as_deref());
    normalise_in(country, identifier_type, value)
}

/// The same, with the country of phone numbers without a country code.
pub(crate) fn normalise_in(country: Option<&str>, identifier_type: &str, value: &str) -> Option<String> {
    let value = value.trim();
    if value.is_empty() {
        return None;
    }
    match identifier_type {
        "phone" => phone(country, value),
        "email" => email(value),
        "member_id" | "loyalty_card" => {
            let id: String =
                half_width(value).chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_uppercase).collect();
            meaningful(id)
        }
        "device" => meaningful(hexadecimal_name(value).unwrap_or_else(|| value.to_owned())),
        _ => meaningful(value.to_owned()),
    }
}

/// Texts that forms and exports put where nothing was known.
fn meaningful(value: String) -> Option<String> {
    const NOTHING: [&str; 8] = ["null", "none", "nan", "n/a", "na", "undefined", "anonymous", "-1"];
    let only_filler = value.chars().all(|c| matches!(c, '0' | '-' | '.' | '*'));
    (!value.is_empty() && !only_filler && !NOTHING.contains(&value.to_lowercase().as_str())).then_some(value)
}

/// The digits of a UUID or a MAC address, which one system writes in capitals and another with other signs between them.
fn hexadecimal_name(value: &str) -> Option<String> {
    let inner = value.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(value);
    let digits: String = inner.chars().filter(|c| !matches!(c, '-' | ':')).map(|c| c.to_ascii_lowercase()).collect();
    let is_mac = digits.len() == 12 && inner.len() == 17;
    ((digits.len() == 32 || is_mac) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digits)
}

/// Full-width digits, letters and signs, as East Asian keyboards write them, become their ASCII twins.
fn half_width(text: &str) -> String {
    text.chars()
        .map(|c| match u32::from(c) {
            code @ 0xff01..=0xff5e => char::from_u32(code - 0xfee0).unwrap_or(c),
            0x3000 => ' ',
            _ => c,
        })
        .collect()
}

fn phone(country: Option<&str>, value: &str) -> Option<String> {
    let text: String = half_width(value).chars().filter(|c| c.is_ascii_digit() || *c == '+').collect();
    let digits = text.trim_start_matches('+');
    if digits.len() < 6 || digits.chars().all(|c| c == '0') {
        return None;
    }
    if let Some(mobile) = chinese_mobile(country, &text)
        && is_known_mobile(mobile)
    {
        return Some(format!("+86{mobile}"));
    }
    phone_by_plan(country, &text, digits)
}

/// The eleven digits of a number that looks like a mobile one of mainland China.
fn chinese_mobile<'a>(country: Option<&str>, text: &'a str) -> Option<&'a str> {
    let national = match text.strip_prefix("+86").or_else(|| text.strip_prefix("0086")) {
        Some(national) => national,
        None if country == Some("CN") => text.strip_prefix("86").filter(|rest| rest.len() == 11).unwrap_or(text),
        None => return None,
    };
    let is_mobile = national.len() == 11
        && national.bytes().all(|byte| byte.is_ascii_digit())
        && national.starts_with('1')
        && !national.starts_with("10");
    is_mobile.then_some(national)
}

/// Whether the numbering plan has this mobile number. It decides by the first seven digits (operator and region), so it is
/// asked once for each of these: that takes microseconds, and there are billions of records.
fn is_known_mobile(national: &str) -> bool {
    const UNASKED: u8 = 0;
    const KNOWN: u8 = 1;
    const UNKNOWN: u8 = 2;
    static PREFIXES: [AtomicU8; 1_000_000] = [const { AtomicU8::new(UNASKED) }; 1_000_000];

    let ask = || phonenumber::parse(None, format!("+86{national}")).is_ok_and(|number| phonenumber::is_valid(&number));
    let prefix = national.get(1..7).and_then(|digits| digits.parse::<usize>().ok()).and_then(|at| PREFIXES.get(at));
    let Some(prefix) = prefix else { return ask() };
    match prefix.load(Ordering::Relaxed) {
        UNASKED => {
            let known = ask();
            prefix.store(if known { KNOWN } else { UNKNOWN }, Ordering::Relaxed);
            known
        }
        answer => answer == KNOWN,
    }
}

/// Any number, by the numbering plans of all countries.
fn phone_by_plan(country: Option<&str>, text: &str, digits: &str) -> Option<String> {
    let country = country.and_then(|country| country.parse::<phonenumber::country::Id>().ok());
    let international = match digits.strip_prefix("00") {
        Some(rest) => format!("+{rest}"),
        None => text.to_owned(),
    };
    let number = phonenumber::parse(country, &international)
        .ok()
        .filter(phonenumber::is_valid)
        // A country code is often written without its plus.
        .or_else(|| phonenumber::parse(country, format!("+{digits}")).ok().filter(phonenumber::is_valid))?;
    Some(number.format().mode(phonenumber::Mode::E164).to_string())
}

fn email(value: &str) -> Option<String> {
    let text = half_width(value).trim().to_lowercase();
    let (local, domain) = text.rsplit_once('@')?;
    if local.is_empty() || !domain.contains('.') || domain.starts_with('.') || text.contains(char::is_whitespace) {
        return None;
    }
    let domain = if domain == "googlemail.com" { "gmail.com" } else { domain };
    // What these providers deliver to the same box.
    let local = match domain {
        "gmail.com" => local.split('+').next().unwrap_or(local).replace('.', ""),
        "outlook.com" | "hotmail.com" | "live.com" | "icloud.com" | "me.com" | "fastmail.com" | "proton.me" => {
            local.split('+').next().unwrap_or(local).to_owned()
        }
        _ => local.to_owned(),
    };
    meaningful(local).map(|local| format!("{local}@{domain}"))
}

#[derive(Debug)]
struct IdentifierToken {
    tokens: IdentifierTokens,
    readable: bool,
    signature: Signature,
}

impl PartialEq for IdentifierToken {
    fn eq(&self, other: &Self) -> bool {
        self.tokens.fingerprint == other.tokens.fingerprint && self.readable == other.readable
    }
}

impl Eq for IdentifierToken {}

impl std::hash::Hash for IdentifierToken {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.tokens.fingerprint.hash(state);
    }
}

impl ScalarUDFImpl for IdentifierToken {
    fn name(&self) -> &'static str {
        "identifier_token"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let Some(ColumnarValue::Scalar(ScalarValue::Utf8(Some(identifier_type)))) = arguments.args.first() else {
            return Err(DataFusionError::Execution(
                "identifier_token(type, value): type must be a literal such as 'phone'".to_owned(),
            ));
        };
        let Some(key) = self.tokens.key(identifier_type) else {
            return Err(DataFusionError::Execution(format!(
                "identifier_token: `{identifier_type}` is no identifier type; the pipeline's rules know {}",
                self.tokens.rules.priority.join(", ")
            )));
        };
        let values = ColumnarValue::values_to_arrays(&arguments.args[1..])?;
        let values = as_string_array(&values[0])?;
        let mut tokens = StringBuilder::with_capacity(values.len(), values.len() * 32);
        // Rows often carry the same identifiers.
        let mut known: HashMap<&str, Option<String>> = HashMap::new();
        for value in values {
            let Some(value) = value else {
                tokens.append_null();
                continue;
            };
            let token = known.entry(value).or_insert_with(|| {
                if self.readable {
                    Some(value.trim())
                        .filter(|value| !value.is_empty())
                        .map(|value| format!("{identifier_type}:{value}"))
                } else {
                    self.tokens.token_with(key, identifier_type, value)
                }
            });
            tokens.append_option(token.as_deref());
        }
        Ok(ColumnarValue::Array(Arc::new(tokens.finish()) as ArrayRef))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rules::TypeRule;

    fn rules() -> IdentityRules {
        let rule = |country: Option<&str>| TypeRule { country: country.map(str::to_owned), ..TypeRule::default() };
        let types: BTreeMap<String, TypeRule> =
            [("phone", Some("CN")), ("email", None), ("member_id", None), ("device", None)]
                .into_iter()
                .map(|(name, country)| (name.to_owned(), rule(country)))
                .collect();
        IdentityRules { priority: types.keys().cloned().collect(), types, blocked: BTreeMap::new(), matching: None }
    }

    #[test]
    fn the_same_phone_in_any_notation_is_one_value() {
        for text in [
            "138 1234 5678",
            "+86-138-1234-5678",
            "0086 13812345678",
            "8613812345678",
            "１３８１２３４５６７８",
            "(+86) 138.1234.5678",
        ] {
            assert_eq!(normalise(&rules(), "phone", text).as_deref(), Some("+8613812345678"), "{text}");
        }
        for text in ["", "12345", "00000000000", "abc"] {
            assert_eq!(normalise(&rules(), "phone", text), None, "{text}");
        }
    }

    #[test]
    fn mobile_numbers_are_those_of_the_numbering_plan() {
        let plan = |text: &str| phone_by_plan(Some("CN"), text, text.trim_start_matches('+'));
        for prefix in 1_000..2_000 {
            for rest in ["0000000", "4060001", "9999999"] {
                let number = format!("{prefix}{rest}");
                assert_eq!(phone(Some("CN"), &number), plan(&number), "{number}");
                // Asked a second time, and in another notation.
                assert_eq!(phone(None, &format!("+86 {number}")), plan(&format!("+86{number}")), "{number}");
            }
        }
    }

    #[test]
    fn mail_providers_own_aliases_are_undone_and_no_others() {
        let of = |text: &str| normalise(&rules(), "email", text);
        assert_eq!(of(" Wei.Zhang+shop@GMail.com"), of("weizhang@googlemail.com"));
        assert_ne!(of("wei.zhang@qq.com"), of("weizhang@qq.com"));
        assert_eq!(of("not a mail"), None);
        assert_eq!(of("none@"), None);
    }

    #[test]
    fn fillers_are_nobody() {
        for text in ["0", "-1", "null", "N/A", "anonymous", "0000-0000"] {
            assert_eq!(normalise(&rules(), "device", text), None, "{text}");
        }
        assert_eq!(normalise(&rules(), "member_id", " m-001 234"), Some("M001234".to_owned()));
    }

    #[test]
    fn one_device_or_card_in_two_notations_is_one_value() {
        let device = |text: &str| normalise(&rules(), "device", text);
        let one = device("38400000-8cf0-11bd-b23e-10b96e40000d").unwrap();
        for text in [
            "38400000-8CF0-11BD-B23E-10B96E40000D",
            "384000008cf011bdb23e10b96e40000d",
            "{38400000-8CF0-11BD-B23E-10B96E40000D}",
        ] {
            assert_eq!(device(text).as_deref(), Some(one.as_str()), "{text}");
        }
        assert_eq!(device("02:1A:3f:00:00:01"), device("02-1a-3F-00-00-01"));
        assert_eq!(device("00000000-0000-0000-0000-000000000000"), None, "what a phone says that tells nothing");
        // Names of other kinds may differ by case alone.
        assert_ne!(device("Abc-12"), device("abc-12"));
        assert_ne!(device("0123456789Ab"), device("0123456789ab"));
        assert_eq!(
            normalise(&rules(), "loyalty_card", "6021 0000-0042"),
            normalise(&rules(), "loyalty_card", "602100000042")
        );
    }

    #[test]
    fn tokens_differ_by_type_and_key_and_hide_the_value() {
        let one = IdentifierTokens::new(rules(), &IdentityKey::new([1; 32]));
        let two = IdentifierTokens::new(rules(), &IdentityKey::new([2; 32]));
        let token = one.token("device", "abc").unwrap();
        assert_eq!(token.len(), 32);
        assert_ne!(Some(&token), one.token("member_id", "abc").as_ref());
        assert_ne!(Some(&token), two.token("device", "abc").as_ref());
        assert_eq!(one.token("fax", "abc"), None);
        assert!(!format!("{:?}", IdentityKey::new([1; 32])).contains('1'));
    }
}
