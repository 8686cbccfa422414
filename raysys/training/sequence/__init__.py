"""The self-attentive sequence model: examples, the model in torch, its fit, and the stages of the build."""
