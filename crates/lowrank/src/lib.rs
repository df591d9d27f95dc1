//! Pretrain, fine-tune with LoRA, align and serve large models in one program.
