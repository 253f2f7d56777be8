//! The compiled kernels in this binary, and what the compiler said of them.

/// The kernels of one file of `cu/`.
pub struct Image {
    /// The file's name without its extension.
    pub name: &'static str,
    /// A fatbin.
    pub bytes: &'static [u8],
    /// The architecture, as in `90a`, if it is compiled for that one alone.
    pub(super) only: Option<&'static str>,
    /// What the assembler reported.
    report: &'static str,
}

impl Image {
    /// An image without contents, for a device that finds kernels by their names alone: the emulator of the tests.
    pub const fn named(name: &'static str) -> Self {
        Self { name, bytes: &[0; 64], only: None, report: "" }
    }
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What one kernel takes on one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// The kernel's symbol.
    pub kernel: String,
    /// As in `sm_90a`.
    pub arch: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block, bytes.
    pub shared: u32,
    /// Bytes of a thread's stack frame.
    pub stack: u32,
    /// Bytes that a thread stores to and loads from memory for want of registers.
    pub spills: u32,
    /// What the assembler did to asynchronous products, or to their share of registers, that was not asked for.
    pub remarks: Vec<String>,
}

/// Resources of all kernels in this binary.
pub fn resources() -> Vec<Resources> {
    IMAGES.iter().flat_map(|image| parse(image.report)).collect()
}

/// Reads the assembler's report: for every kernel a line with its name, one with its stack, one with its registers.
fn parse(report: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    let remarks =
        report.lines().filter(|line| line.contains("Performance Loss") || line.contains("setmaxnreg"));
    for line in report.lines() {
        if let Some((_, entry)) = line.split_once("Compiling entry function '") {
            let mut quoted = entry.split('\'');
            let (kernel, arch) = (quoted.next().unwrap_or_default(), quoted.nth(1).unwrap_or_default());
            let (kernel, arch) = (kernel.to_owned(), arch.to_owned());
            found.push(Resources {
                kernel,
                arch,
                registers: 0,
                shared: 0,
                stack: 0,
                spills: 0,
                remarks: vec![],
            });
        } else if let Some(last) = found.last_mut() {
            let number = |unit: &str| {
                let before = line.split_once(unit)?.0.trim_end();
                before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
            };
            if line.contains("bytes stack frame") {
                last.stack = number("bytes stack frame").unwrap_or(0);
                last.spills =
                    number("bytes spill stores").unwrap_or(0) + number("bytes spill loads").unwrap_or(0);
            } else if line.contains("Used") {
                last.registers = number("registers").unwrap_or(0);
                last.shared = number("bytes smem").unwrap_or(0);
            }
        }
    }
    for remark in remarks {
        let named = |r: &&mut Resources| remark.contains(&format!("'{}'", r.kernel));
        found.iter_mut().filter(named).for_each(|r| r.remarks.push(remark.to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = "ptxas info    : 0 bytes gmem\n\
                      ptxas info    : Compiling entry function 'f_bf16' for 'sm_90a'\n\
                      ptxas info    : Function properties for f_bf16\n    \
                      16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
                      ptxas info    : Used 22 registers, used 1 barriers, 128 bytes smem\n\
                      ptxas info    : (C7514) Potential Performance Loss: serialized in the function 'f_bf16'\n";
        let want = Resources {
            kernel: "f_bf16".into(),
            arch: "sm_90a".into(),
            registers: 22,
            shared: 128,
            stack: 16,
            spills: 20,
            remarks: vec![report.lines().last().unwrap().into()],
        };
        assert_eq!(parse(report), [want]);
    }
}
