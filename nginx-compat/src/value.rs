//! Numbers, sizes and times as nginx writes them.

/// A number without a sign.
pub fn number(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// A size: bytes, or with `k` or `m`.
pub fn size(text: &str) -> Option<i64> {
    scaled(text, &[('k', 10), ('m', 20)])
}

/// A size that may be large: bytes, or with `k`, `m` or `g`.
pub fn offset(text: &str) -> Option<i64> {
    scaled(text, &[('k', 10), ('m', 20), ('g', 30)])
}

fn scaled(text: &str, units: &[(char, u32)]) -> Option<i64> {
    for (unit, power) in units {
        if let Some(count) = text.strip_suffix([*unit, unit.to_ascii_uppercase()]) {
            return number(count)?.checked_mul(1 << power);
        }
    }
    number(text)
}

/// The units of time, the greatest first, in milliseconds.
const UNITS: [(&str, i64); 9] = [
    ("y", 31_536_000_000),
    ("M", 2_592_000_000),
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
    (" ", 1_000),
];

/// A time such as `1h 30m`, in milliseconds. A number without a unit counts seconds.
///
/// Directives that count in whole seconds have years and months but no milliseconds; the others
/// the other way round.
pub fn time(text: &str, whole_seconds: bool) -> Option<i64> {
    let (mut total, mut value, mut any) = (0_i64, 0_i64, false);
    let mut least = if whole_seconds { 0 } else { 2 };
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(digit) = first.to_digit(10) {
            value = value.checked_mul(10)?.checked_add(i64::from(digit))?;
            any = true;
            rest = rest.get(1..)?;
            continue;
        }
        let place = UNITS
            .iter()
            .rposition(|(unit, _)| rest.starts_with(unit) && (*unit != "m" || !rest.starts_with("ms")))?;
        let (unit, scale) = UNITS.get(place)?;
        if place < least || (whole_seconds && *unit == "ms") {
            return None;
        }
        total = total.checked_add(value.checked_mul(*scale)?)?;
        (value, least) = (0, place + 1);
        rest = rest.get(unit.len()..)?.trim_start_matches(' ');
    }
    if !any {
        return None;
    }
    total.checked_add(value.checked_mul(1_000)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_in_either_case() {
        assert_eq!(size("8k"), Some(8192));
        assert_eq!(size("1M"), Some(1 << 20));
        assert_eq!(offset("2g"), Some(2 << 30));
        for wrong in ["", "k", "1g", "-1", "1.5k", "1kk", "99999999999999999999", "9223372036854775807k"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_add_up_from_the_greatest_unit_to_the_least() {
        assert_eq!(time("60", false), Some(60_000));
        assert_eq!(time("1h 30m", false), Some(5_400_000));
        assert_eq!(time("1m500ms", false), Some(60_500));
        assert_eq!(time("5m5", false), Some(305_000));
        assert_eq!(time("1y", true), Some(31_536_000_000));
        for wrong in ["", "s", "1y", "30m1h", "5ss", "-1", "1x", "99999999999999999999"] {
            assert_eq!(time(wrong, false), None, "{wrong}");
        }
        assert_eq!(time("500ms", true), None);
    }
}
