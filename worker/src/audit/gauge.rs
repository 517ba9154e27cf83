//! The audit for alarms: a file in Prometheus' text format, as node_exporter's textfile collector reads it.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::Report;

/// What a report amounts to.
pub fn text(report: &Report, took: Duration, at_seconds: i64) -> String {
    let equations = || report.sales.iter().flat_map(|sale| &sale.equations);
    let broken = equations().filter(|equation| !equation.holds).count();
    let flag = |is: bool| if is { "1" } else { "0" }.to_owned();
    let gauges = [
        ("balanced", "Whether every equation of every sale holds", flag(report.balanced)),
        ("at_rest", "Whether nothing was under way", flag(report.at_rest)),
        ("sales", "Sales that were judged", report.sales.len().to_string()),
        ("equations", "Equations that were judged", equations().count().to_string()),
        ("broken_equations", "Equations that do not hold", broken.to_string()),
        ("duration_seconds", "How long the audit took", format!("{:.3}", took.as_secs_f64())),
        ("last_run_timestamp_seconds", "When it ended", at_seconds.to_string()),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "# HELP sluice_audit_{name} {help}\n# TYPE sluice_audit_{name} gauge\nsluice_audit_{name} {value}\n"
        );
    }
    text
}

/// Puts the text in the place of the file's former one: whoever reads it sees the one or the other.
pub fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_can_be_made_of_it() {
        let report = Report {
            balanced: false,
            at_rest: true,
            at: String::new(),
            looks: 4,
            sales: vec![crate::audit::unreadable(
                &sluice_shared::ids::SaleId::parse("demo").unwrap(),
                "a row".to_owned(),
            )],
        };
        let folder = std::env::temp_dir().join(format!("sluice-audit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("audit.prom");
        write(&file, "old").unwrap();
        write(&file, &text(&report, Duration::from_millis(1_500), 1_795_233_600)).unwrap();
        let written = std::fs::read_to_string(&file).unwrap();
        for line in [
            "sluice_audit_balanced 0",
            "sluice_audit_at_rest 1",
            "sluice_audit_broken_equations 1",
            "sluice_audit_duration_seconds 1.500",
            "sluice_audit_last_run_timestamp_seconds 1795233600",
        ] {
            assert!(written.lines().any(|written| written == line), "{line} not in {written}");
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
