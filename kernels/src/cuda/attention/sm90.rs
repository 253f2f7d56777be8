//! The launches of cu/attention_sm90.cu: their constants.
