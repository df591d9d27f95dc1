//! Adapter methods, one file for each of PEFT's `peft_type`s.

pub mod lora;
