/* @name@: an int8 classifier for TensorFlow Lite for Microcontrollers that hands
 * out what its map is made of.
 *
 * Written by keras_attr_preserve. SHA-256 of the model:
 * @sha256@
 */
#ifndef KAPNET_MODEL_H_
#define KAPNET_MODEL_H_

#ifdef __cplusplus
extern "C" {
#endif

/* The .tflite file, aligned to 16 bytes. */
#define KAPNET_MODEL_SIZE @model_size@
extern const unsigned char kapnet_model[KAPNET_MODEL_SIZE];

/* Bytes for the tensor arena:
@arena_words@ */
#define KAPNET_TENSOR_ARENA_SIZE @arena_size@

/* Which input or output of the interpreter is which. Real value = SCALE *
 * (number - ZERO_POINT); every number is an int8_t. */
@tensors@
/* The height, width and channels of an image. */
#define KAPNET_IMAGE_HEIGHT @image_height@
#define KAPNET_IMAGE_WIDTH @image_width@
#define KAPNET_IMAGE_CHANNELS @image_channels@

@labels@
#ifdef __cplusplus
}
#endif

#endif  /* KAPNET_MODEL_H_ */
