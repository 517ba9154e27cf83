//! Currencies: which codes are in use, and how many decimals their amounts have.
//!
//! From ISO 4217, list one, as of 1 January 2026 (<https://www.six-group.com/en/products-services/financial-information/data-standards.html>).
//! Codes without a minor unit (metals, `XDR`, `XTS`, `XXX`) are left out: an amount is a number of minor units.

/// Codes by the number of their decimals.
const CODES: [(u8, &str); 4] = [
    (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
    (
        2,
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF \
         CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL \
         HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU \
         MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR \
         SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED \
         VES WST XAD XCD XCG YER ZAR ZMW ZWG",
    ),
    (3, "BHD IQD JOD KWD LYD OMR TND"),
    (4, "CLF UYW"),
];

/// How many decimals the amounts of a currency have; `None` for a code that is not in use.
pub fn decimals(code: &str) -> Option<u8> {
    CODES.iter().find(|(_, codes)| codes.split(' ').any(|one| one == code)).map(|(decimals, _)| *decimals)
}

/// An amount for people: minor units with the currency's decimals, then its code. A code that is not in use has
/// none that could be known.
pub fn amount(minor: i64, code: &str) -> String {
    let digits = usize::from(decimals(code).unwrap_or(0));
    let (sign, all) =
        (if minor < 0 { "-" } else { "" }, format!("{:0>1$}", minor.unsigned_abs(), digits + 1));
    let (whole, rest) = all.split_at(all.len() - digits);
    if rest.is_empty() { format!("{sign}{whole} {code}") } else { format!("{sign}{whole}.{rest} {code}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_in_use_have_decimals() {
        for (code, known) in [("EUR", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4)] {
            assert_eq!(decimals(code), Some(known), "{code}");
        }
        for bad in ["ZZZ", "BTC", "eur", "EU", "EUR ", "", "USD EUR", "XXX", "XAU", "DEM"] {
            assert_eq!(decimals(bad), None, "{bad}");
        }
        let all = CODES.iter().flat_map(|(_, codes)| codes.split(' '));
        assert!(
            all.clone().all(|code| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase()))
        );
        assert_eq!(all.clone().collect::<std::collections::BTreeSet<_>>().len(), all.count());
    }

    #[test]
    fn amounts_have_their_currencys_decimals() {
        for (minor, code, text) in [
            (59_900, "EUR", "599.00 EUR"),
            (5, "EUR", "0.05 EUR"),
            (0, "USD", "0.00 USD"),
            (-1234, "KWD", "-1.234 KWD"),
            (1500, "JPY", "1500 JPY"),
            (i64::MIN, "EUR", "-92233720368547758.08 EUR"),
            (7, "ZZZ", "7 ZZZ"),
        ] {
            assert_eq!(amount(minor, code), text);
        }
    }
}
