"""What building and running TensorRT engines share; imports neither TensorRT nor CUDA before it is used."""
