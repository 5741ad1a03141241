//! Dates as the AWS APIs write them, from and to Unix seconds (the proleptic Gregorian calendar, UTC).

/// `20260102T030405Z`.
pub fn basic(unix: u64) -> String {
    let (days, s) = (unix / 86400, unix % 86400);
    let (y, m, d) = civil(days as i64);
    format!("{y:04}{m:02}{d:02}T{:02}{:02}{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// Unix seconds of `2026-01-02T03:04:05Z`, with or without a fraction.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let marks = text.get(4..5)? == "-" && text.get(7..8)? == "-" && text.get(10..11)? == "T" && text.ends_with('Z');
    if !marks {
        return None;
    }
    let (y, m, d) = (number(0, 4)? as i64, number(5, 7)?, number(8, 10)?);
    let (h, min, s) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&m) || !(1..=31).contains(&d) || h > 23 || min > 59 || s > 60 || y < 1970 {
        return None;
    }
    Some(days(y, m as i64, d as i64) as u64 * 86400 + h * 3600 + min * 60 + s)
}

/// Year, month and day of a count of days since 1970 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, u64, u64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month as u64, (doy - (153 * mp + 2) / 5 + 1) as u64)
}

fn days(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_date_1() {
        assert_eq!(basic(0), "19700101T000000Z");
        assert_eq!(basic(1_440_938_160), "20150830T123600Z");
        assert_eq!(basic(951_782_400), "20000229T000000Z");
        assert_eq!(parse_rfc3339("2015-08-30T12:36:00Z"), Some(1_440_938_160));
        assert_eq!(parse_rfc3339("2015-08-30T12:36:00.123Z"), Some(1_440_938_160));
        for day in (0..60_000u64).step_by(17) {
            let (y, m, d) = civil(day as i64);
            assert_eq!(days(y, m as i64, d as i64), day as i64);
        }
        for bad in [
            "",
            "2015-08-30",
            "2015-13-30T12:36:00Z",
            "2015-08-30 12:36:00Z",
            "é015-08-30T12:36:00Z",
            "20150830T123600Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }
}
