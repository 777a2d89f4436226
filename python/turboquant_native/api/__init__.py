"""What programs call: `Llama` and the shapes of OpenAI and llama-cpp-python around the engine."""
