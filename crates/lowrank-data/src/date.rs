//! A moment, as templates write it. The caller says what time it is: the same recipe on the same
//! data must not depend on a clock that nobody asked.

/// A calendar date and time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DateTime {
    /// Year of the Gregorian calendar.
    pub year: i64,
    /// Month, from 1.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute.
    pub minute: u8,
    /// Second.
    pub second: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const SECONDS_A_DAY: i64 = 86_400;

impl DateTime {
    /// The moment `seconds` after 1 January 1970, UTC.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(SECONDS_A_DAY), seconds.rem_euclid(SECONDS_A_DAY));
        // Howard Hinnant's civil_from_days: years begin in March so that leap days come last.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    fn days_since_1970(self) -> i64 {
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = self.year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let shifted_month = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
            - 719_468
    }

    /// C's `strftime` in the C locale, for the codes that chat templates use.
    /// # Errors
    /// The code that isn't supported.
    pub fn strftime(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let code = chars.next().ok_or("`%` at the end of the date format")?;
            let plain = code == '-';
            let code = if plain {
                chars.next().ok_or("`%-` at the end of the date format")?
            } else {
                code
            };
            out.push_str(&self.field(code, plain)?);
        }
        Ok(out)
    }

    fn field(self, code: char, plain: bool) -> Result<String, String> {
        let two = |n: u8| if plain { n.to_string() } else { format!("{n:02}") };
        let month = MONTHS.get(usize::from(self.month).wrapping_sub(1)).copied().unwrap_or("");
        let weekday = self.days_since_1970().rem_euclid(7) as usize;
        let weekday = WEEKDAYS.get(weekday).copied().unwrap_or("");
        let short = |name: &str| name.chars().take(3).collect::<String>();
        Ok(match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => two(self.month),
            'd' => two(self.day),
            'B' => month.to_owned(),
            'b' | 'h' => short(month),
            'A' => weekday.to_owned(),
            'a' => short(weekday),
            'H' => two(self.hour),
            'I' => two((self.hour + 11) % 12 + 1),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => two(self.minute),
            'S' => two(self.second),
            'F' => self.strftime("%Y-%m-%d")?,
            'T' => self.strftime("%H:%M:%S")?,
            '%' => "%".to_owned(),
            other => return Err(format!("the date format `%{other}` isn't supported")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right: `datetime.fromtimestamp(n, timezone.utc).strftime(f)` of CPython 3.11.
    #[test]
    fn writes_dates_as_python_does() {
        for (seconds, format, expected) in [
            (0, "%A %d %B %Y %H:%M:%S", "Thursday 01 January 1970 00:00:00"),
            (951_782_400, "%a %-d %b %y", "Tue 29 Feb 00"),
            (1_795_539_877, "%d %b %Y, %I:%M %p", "24 Nov 2026, 05:04 PM"),
            (-1, "%F %T", "1969-12-31 23:59:59"),
        ] {
            assert_eq!(DateTime::from_unix(seconds).strftime(format).unwrap(), expected);
        }
        assert!(DateTime::from_unix(0).strftime("%q").is_err());
    }
}
