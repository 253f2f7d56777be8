//! What a run takes of its device's memory, line by line.

use engine::memory::MemoryTable;

/// One line for each role, the sum, and what would fit.
pub fn lines(table: &MemoryTable) -> Vec<String> {
    let mut lines: Vec<String> =
        table.rows.iter().map(|(role, taken)| format!("memory  {role:<17} {:>9}", bytes(*taken))).collect();
    let device = table.device.map_or(String::new(), |all| format!(" of {}", bytes(all)));
    let mean = match table.reserved {
        true => "",
        false => ", for batches of mean length; buffers grow with longer ones",
    };
    lines.push(format!("memory  {:<17} {:>9}{device}{mean}", "total", bytes(table.total)));
    lines.extend(
        table.largest.as_ref().map(|most| format!("memory  the largest micro-batch that fits: {most}")),
    );
    lines
}

fn bytes(n: f64) -> String {
    if n < 1e9 { format!("{:.1} MB", n / 1e6) } else { format!("{:.2} GB", n / 1e9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_ends_with_what_fits() {
        let table = MemoryTable {
            rows: vec![("weights", 2.017e9), ("batch", 1.34e6)],
            total: 2.018_34e9,
            device: Some(84.97e9),
            reserved: true,
            largest: Some("171 sequences of up to 512 tokens".into()),
        };
        let expected = [
            "memory  weights             2.02 GB",
            "memory  batch                1.3 MB",
            "memory  total               2.02 GB of 84.97 GB",
            "memory  the largest micro-batch that fits: 171 sequences of up to 512 tokens",
        ];
        assert_eq!(lines(&table), expected);
        let table = MemoryTable { reserved: false, device: None, largest: None, ..table };
        let last =
            "memory  total               2.02 GB, for batches of mean length; buffers grow with longer ones";
        assert_eq!(lines(&table)[2..], [last]);
    }
}
