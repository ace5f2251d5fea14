/* The model differentiates the score that its second input asks for, so choose
 * before it runs. To explain the top class, run it once with any class weights,
 * take kapnet_top_class of the logits, and run it again. */

/* Fills the model's input "class_weights" for one class,
 * 0 .. KAPNET_CLASSES - 1. */
kapnet_status kapnet_ask_class(int target, int8_t input[KAPNET_LOGITS]);

/* Fills it for a weighted sum of the logits, such as +1 for one class and -1
 * for another; only their ratios count. */
void kapnet_ask_weighted(const int8_t class_weights[KAPNET_LOGITS],
                         int8_t input[KAPNET_LOGITS]);

/* Explains what was asked.
 * features, sensitivity: the model's outputs of these names. */
kapnet_status kapnet_explain(const int8_t *features,
                             const int8_t sensitivity[KAPNET_CHANNELS],
                             kapnet_explanation *out);
