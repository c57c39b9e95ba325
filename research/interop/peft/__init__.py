"""Import and export of adapters in the format of Hugging Face PEFT."""
