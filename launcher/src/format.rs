//! Numbers as people read them.

/// Seconds as `45s`, `1m 02s`, `2h 03m` or `3d 04h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Three significant digits and a unit: `21.3k`, `1.05M`, `336M`.
pub fn short(n: f64) -> String {
    let units = ["", "k", "M", "G", "T"];
    let (mut value, mut unit) = (n, 0);
    while value.abs() >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value.abs() {
        v if v >= 99.95 || unit == 0 && v.fract() == 0.0 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", units[unit])
}

/// A whole number with commas between thousands.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A bar of `width` cells that fills `share` of it, in eighths of a cell.
pub fn bar(share: f64, width: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (8 * width) as f64).round() as usize;
    let mut text = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        text.push([' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths % 8]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_change_units_where_the_smaller_one_stops_to_matter() {
        let shown = [0.4, 59.4, 59.6, 62.0, 3599.4, 7384.0, 100_000.0, -1.0, f64::NAN].map(duration);
        assert_eq!(shown, ["0s", "59s", "1m 00s", "1m 02s", "59m 59s", "2h 03m", "1d 03h", "?", "?"]);
    }

    #[test]
    fn short_numbers_have_three_digits() {
        let shown = [0.0, 7.0, 0.25, 999.0, 999.6, 21_340.0, 99_960.0, 1_049_000.0, 336_226_108.0].map(short);
        assert_eq!(shown, ["0", "7", "0.25", "999", "1.00k", "21.3k", "100k", "1.05M", "336M"]);
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn bars_fill_their_width() {
        assert_eq!(bar(1.0, 3), "███");
        assert_eq!(bar(0.5, 3), "█▌");
        assert_eq!(bar(0.0, 3), "");
        assert_eq!(bar(7.0, 1), "█");
    }
}
