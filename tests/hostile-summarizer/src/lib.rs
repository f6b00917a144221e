//! A summariser that misbehaves as the first turn tells it to.

use larder_guest::{Summarizer, SummaryRequest, export_summarizer};

struct Hostile;

impl Summarizer for Hostile {
    fn summarize(request: SummaryRequest) -> Result<String, String> {
        let told = request.turns.first().map(|turn| turn.user_message.as_str()).unwrap_or_default();
        match told {
            "refuse" => Err("it was told to".to_string()),
            "loop" => loop {
                std::hint::spin_loop();
            },
            "trap" => std::process::abort(),
            "allocate" => {
                let mut hoard = Vec::new();
                loop {
                    hoard.push(vec![1_u8; 1 << 20]);
                }
            }
            "flood" => Ok("x".repeat(32 << 20)),
            told => Ok(format!("{}{told};", request.previous_summary)),
        }
    }
}

export_summarizer!(Hostile);
