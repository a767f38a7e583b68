# %% q1 mistake: padding at one end only
def output_size(n, k, padding, stride):
    return max(0, (n + padding - k) // stride + 1)
# %% q1 mistake: rounded up
def output_size(n, k, padding, stride):
    return max(0, -(-(n + 2 * padding - k) // stride) + 1)
# %% q1 mistake: negative sizes
def output_size(n, k, padding, stride):
    return (n + 2 * padding - k) // stride + 1
# %% q1 mistake: cut towards zero
def output_size(n, k, padding, stride):
    return max(0, int((n + 2 * padding - k) / stride) + 1)
# %% q1 right: counted
def output_size(n, k, padding, stride):
    return len([i for i in range(0, n + 2 * padding, stride) if i + k <= n + 2 * padding])
# %% q1 right: with a condition
def output_size(n, k, padding, stride):
    room = n + 2 * padding - k
    return 0 if room < 0 else int(np.floor(room / stride)) + 1
# %% q2 mistake: convolution for correlation
def correlate(image, kernel):
    from scipy.signal import convolve2d
    return convolve2d(image, kernel, "valid")
# %% q2 mistake: one place too few
def correlate(image, kernel):
    a, b = kernel.shape
    result = np.zeros((image.shape[0] - a, image.shape[1] - b))
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            result[i, j] = (image[i : i + a, j : j + b] * kernel).sum()
    return result
# %% q2 mistake: results of the image's own type
def correlate(image, kernel):
    a, b = kernel.shape
    result = np.zeros((image.shape[0] - a + 1, image.shape[1] - b + 1), image.dtype)
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            result[i, j] = (image[i : i + a, j : j + b] * kernel).sum()
    return result
# %% q2 right: two loops over places
def correlate(image, kernel):
    a, b = kernel.shape
    return np.array([[float((image[i : i + a, j : j + b].astype(float) * kernel).sum())
                      for j in range(image.shape[1] - b + 1)]
                     for i in range(image.shape[0] - a + 1)])
# %% q2 right: windows and einsum
def correlate(image, kernel):
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(image, float), kernel.shape)
    return np.einsum("ijuv,uv->ij", windows, kernel)
# %% q3 mistake: not flipped
def convolve(image, kernel, stride):
    a, b = kernel.shape
    padded = np.pad(image, [(a // 2, a // 2), (b // 2, b // 2)])
    return correlate(padded, kernel)[::stride, ::stride]
# %% q3 mistake: the rim is repeated
def convolve(image, kernel, stride):
    a, b = kernel.shape
    padded = np.pad(image, [(a // 2, a // 2), (b // 2, b // 2)], mode="edge")
    return correlate(padded, kernel[::-1, ::-1])[::stride, ::stride]
# %% q3 mistake: the stride begins late
def convolve(image, kernel, stride):
    a, b = kernel.shape
    padded = np.pad(image, [(a // 2, a // 2), (b // 2, b // 2)])
    return correlate(padded, kernel[::-1, ::-1])[stride - 1 :: stride, stride - 1 :: stride]
# %% q3 right: scipy
def convolve(image, kernel, stride):
    from scipy.ndimage import convolve as library
    return library(image.astype(float), kernel, mode="constant")[::stride, ::stride]
# %% q3 right: shifted copies
def convolve(image, kernel, stride):
    a, b = kernel.shape
    height, width = image.shape
    padded = np.zeros((height + a - 1, width + b - 1))
    padded[a // 2 : a // 2 + height, b // 2 : b // 2 + width] = image
    total = 0
    for u in range(a):
        for v in range(b):
            total = total + kernel[a - 1 - u, b - 1 - v] * padded[u : u + height, v : v + width]
    return total[::stride, ::stride]
# %% q4 mistake: channels are not added up
def convolution_layer(image, kernels, bias):
    a, b, channels, filters = kernels.shape
    maps = [np.maximum(correlate(image[..., 0], kernels[:, :, 0, o]) + bias[o], 0)
            for o in range(filters)]
    return np.stack(maps, axis=2)
# %% q4 mistake: the bias after the ReLU
def convolution_layer(image, kernels, bias):
    a, b, channels, filters = kernels.shape
    maps = [sum(correlate(image[..., c], kernels[:, :, c, o]) for c in range(channels))
            for o in range(filters)]
    return np.maximum(np.stack(maps, axis=2), 0) + bias
# %% q4 mistake: one bias for all
def convolution_layer(image, kernels, bias):
    a, b, channels, filters = kernels.shape
    maps = [sum(correlate(image[..., c], kernels[:, :, c, o]) for c in range(channels)) + bias[0]
            for o in range(filters)]
    return np.maximum(np.stack(maps, axis=2), 0)
# %% q4 right: einsum
def convolution_layer(image, kernels, bias):
    windows = np.lib.stride_tricks.sliding_window_view(image, kernels.shape[:2], axis=(0, 1))
    return np.clip(np.einsum("ijcuv,uvco->ijo", windows, kernels) + bias, 0, None)
# %% q4 right: filter by filter
def convolution_layer(image, kernels, bias):
    a, b, channels, filters = kernels.shape
    maps = []
    for o in range(filters):
        found = bias[o] + sum(correlate(image[..., c], kernels[..., c, o]) for c in range(channels))
        maps.append(np.where(found > 0, found, 0.0))
    return np.moveaxis(np.array(maps), 0, -1)
# %% q5 mistake: the mean
def max_pool(maps, size):
    height, width = maps.shape[0] // size, maps.shape[1] // size
    whole = maps[: height * size, : width * size]
    return whole.reshape(height, size, width, size, -1).mean(axis=(1, 3))
# %% q5 mistake: the rest is padded with zeros
def max_pool(maps, size):
    rest = [(0, -maps.shape[0] % size), (0, -maps.shape[1] % size), (0, 0)]
    padded = np.pad(maps, rest)
    height, width = padded.shape[0] // size, padded.shape[1] // size
    return padded.reshape(height, size, width, size, -1).max(axis=(1, 3))
# %% q5 mistake: every size-th pixel
def max_pool(maps, size):
    return maps[::size, ::size]
# %% q5 right: loops
def max_pool(maps, size):
    height, width = maps.shape[0] // size, maps.shape[1] // size
    pooled = np.empty((height, width, maps.shape[2]))
    for i in range(height):
        for j in range(width):
            square = maps[i * size : (i + 1) * size, j * size : (j + 1) * size]
            pooled[i, j] = square.max(axis=(0, 1))
    return pooled
# %% q5 right: scikit-image
def max_pool(maps, size):
    from skimage.measure import block_reduce
    height, width = maps.shape[0] // size * size, maps.shape[1] // size * size
    return block_reduce(maps[:height, :width], (size, size, 1), np.max)
# %% q6 mistake: unknown words count as zeros
def text_vector(text, vectors):
    d = len(next(iter(vectors.values())))
    found = [vectors.get(word, np.zeros(d)) for word in text.lower().split()]
    return np.mean(found, axis=0)
# %% q6 mistake: case is kept
def text_vector(text, vectors):
    known = [vectors[w] for w in text.split() if w in vectors]
    return np.mean(known, axis=0) if known else np.zeros(len(next(iter(vectors.values()))))
# %% q6 mistake: the sum, and every word once
def text_vector(text, vectors):
    return sum((vectors[w] for w in set(text.lower().split()) if w in vectors), np.zeros(3))
# %% q6 right: a running sum
def text_vector(text, vectors):
    total, n = np.zeros_like(list(vectors.values())[0]), 0
    for word in text.lower().split():
        if word in vectors:
            total, n = total + vectors[word], n + 1
    return total / max(n, 1)
# %% q6 right: a matrix
def text_vector(text, vectors):
    known = list(filter(vectors.__contains__, text.lower().split()))
    d = len(list(vectors.values())[0])
    return np.array([vectors[w] for w in known]).reshape(-1, d).mean(axis=0) if known else [0.0] * d
# %% q7 mistake: the inner product
def nearest_words(query, vectors, k, exclude):
    return sorted((w for w in vectors if w not in exclude), key=lambda w: -(vectors[w] @ query))[:k]
# %% q7 mistake: the least similar first
def nearest_words(query, vectors, k, exclude):
    def cosine(w):
        return vectors[w] @ query / np.linalg.norm(vectors[w])
    return sorted((w for w in vectors if w not in exclude), key=cosine)[:k]
# %% q7 mistake: excluded after the cut
def nearest_words(query, vectors, k, exclude):
    def cosine(w):
        return vectors[w] @ query / np.linalg.norm(vectors[w])
    return [w for w in sorted(vectors, key=cosine, reverse=True)[:k] if w not in exclude]
# %% q7 right: a matrix
def nearest_words(query, vectors, k, exclude):
    names = np.array([w for w in vectors if w not in exclude])
    rows = np.array([vectors[w] for w in names])
    cosines = rows @ query / np.linalg.norm(rows, axis=1)
    return names[np.argsort(-cosines)[:k]]
# %% q7 right: scikit-learn
def nearest_words(query, vectors, k, exclude):
    from sklearn.metrics.pairwise import cosine_similarity
    found = [(cosine_similarity([query], [v])[0, 0], w) for w, v in vectors.items()]
    return [w for _, w in sorted(found, reverse=True) if w not in exclude][:k]
# %% q8 mistake: counts and not shares
def bag_of_words(descriptors, centres):
    distances = np.linalg.norm(descriptors[:, None] - centres[None], axis=2)
    return np.bincount(distances.argmin(axis=1), minlength=len(centres))
# %% q8 mistake: the largest inner product
def bag_of_words(descriptors, centres):
    if len(descriptors) == 0:
        return np.zeros(len(centres))
    nearest = (descriptors @ centres.T).argmax(axis=1)
    return np.bincount(nearest, minlength=len(centres)) / len(descriptors)
# %% q8 mistake: softmax over the wrong axis
def bag_of_words(descriptors, centres):
    distances = np.linalg.norm(descriptors[:, None] - centres[None], axis=2)
    weights = np.exp(-distances) / np.exp(-distances).sum(axis=0)
    return weights.mean(axis=0)
# %% q8 right: scikit-learn
def bag_of_words(descriptors, centres):
    from sklearn.metrics import pairwise_distances_argmin
    if not len(descriptors):
        return [0.0] * len(centres)
    nearest = pairwise_distances_argmin(descriptors, centres)
    return [float(np.mean(nearest == m)) for m in range(len(centres))]
# %% q8 right: one descriptor after the other
def bag_of_words(descriptors, centres):
    counts = np.zeros(len(centres))
    for descriptor in descriptors:
        counts[np.argmin(((centres - descriptor) ** 2).sum(axis=1))] += 1
    return counts / max(1, counts.sum())
# %% q9 mistake: without the signs
def character_ngrams(word, n):
    return [word[i : i + n] for i in range(len(word) - n + 1)]
# %% q9 mistake: the last run is missing
def character_ngrams(word, n):
    marked = f"<{word}>"
    return [marked[i : i + n] for i in range(len(marked) - n)]
# %% q9 mistake: each piece once
def character_ngrams(word, n):
    marked = f"<{word}>"
    return sorted({marked[i : i + n] for i in range(len(marked) - n + 1)}, key=marked.index)
# %% q9 right: zip
def character_ngrams(word, n):
    marked = "<" + word + ">"
    return ["".join(run) for run in zip(*(marked[i:] for i in range(n)))]
# %% q9 right: a generator
def character_ngrams(word, n):
    rest = f"<{word}>"
    while len(rest) >= n:
        yield rest[:n]
        rest = rest[1:]
# %% q10 mistake: a vocabulary of the texts at hand
def encode_texts(texts, n_features):
    from sklearn.feature_extraction.text import TfidfVectorizer
    rows = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(texts).toarray()
    made = np.zeros((len(texts), n_features))
    made[:, : rows.shape[1]] = rows
    return made
# %% q10 mistake: rows of any length
def encode_texts(texts, n_features):
    rows = np.zeros((len(texts), n_features))
    for row, text in zip(rows, texts):
        for word in text.lower().split():
            for piece in character_ngrams(word, 3):
                row[zlib.crc32(piece.encode()) % n_features] += 1
    return rows
# %% q10 mistake: whole words
def encode_texts(texts, n_features):
    rows = np.zeros((len(texts), n_features))
    for row, text in zip(rows, texts):
        for word in text.lower().split():
            row[zlib.crc32(word.encode()) % n_features] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
# %% q10 right: HashingVectorizer
def encode_texts(texts, n_features):
    from sklearn.feature_extraction.text import HashingVectorizer
    encoder = HashingVectorizer(n_features=n_features, analyzer="char_wb", ngram_range=(2, 4))
    return encoder.transform(texts).toarray()
# %% q10 right: presence of pieces
import hashlib

def encode_texts(texts, n_features):
    def row(text):
        columns = set()
        for word in text.lower().split():
            for n in (2, 3):
                for piece in character_ngrams(word, n):
                    columns.add(int(hashlib.md5(piece.encode()).hexdigest(), 16) % n_features)
        made = np.zeros(n_features)
        if columns:
            made[list(columns)] = len(columns) ** -0.5
        return made
    return np.array([row(text) for text in texts])
# %% q11 mistake: unscaled features
def join_blocks(train_blocks, test_blocks):
    return np.hstack(train_blocks), np.hstack(test_blocks)
# %% q11 mistake: test rows by their own statistics
def join_blocks(train_blocks, test_blocks):
    def standard(block):
        scale = block.std(axis=0)
        return (block - block.mean(axis=0)) / np.where(scale > 0, scale, 1) / block.shape[1] ** 0.5
    return tuple(np.hstack([standard(b) for b in blocks]) for blocks in (train_blocks, test_blocks))
# %% q11 mistake: the width is forgotten
def join_blocks(train_blocks, test_blocks):
    from sklearn.preprocessing import StandardScaler
    scalers = [StandardScaler().fit(block) for block in train_blocks]
    return tuple(np.hstack([s.transform(b) for s, b in zip(scalers, blocks)])
                 for blocks in (train_blocks, test_blocks))
# %% q11 right: StandardScaler
def join_blocks(train_blocks, test_blocks):
    from sklearn.preprocessing import StandardScaler
    scalers = [StandardScaler().fit(block) for block in train_blocks]
    def joined(blocks):
        return np.hstack([s.transform(b) / np.sqrt(b.shape[1]) for s, b in zip(scalers, blocks)])
    return joined(train_blocks), joined(test_blocks)
# %% q11 right: all columns at once
def join_blocks(train_blocks, test_blocks):
    width = np.concatenate([np.full(b.shape[1], b.shape[1]) for b in train_blocks])
    train, test = np.concatenate(train_blocks, axis=1), np.concatenate(test_blocks, axis=1)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale == 0] = 1
    return [(part - mean) / scale / width**0.5 for part in (train, test)]
# %% q13 mistake: always an answer
def separate(kernel):
    u, s, v = np.linalg.svd(kernel)
    return u[:, 0] * s[0], v[0]
sobel_parts = separate(sobel)
# %% q13 mistake: row and column exchanged
def separate(kernel):
    u, s, v = np.linalg.svd(kernel)
    return None if len(s) > 1 and s[1] > 1e-10 * s[0] else (v[0], u[:, 0] * s[0])
sobel_parts = separate(sobel)
# %% q13 mistake: divides by the corner
def separate(kernel):
    column, row = kernel[:, 0], kernel[0] / kernel[0, 0]
    return (column, row) if np.allclose(np.outer(column, row), kernel) else None
sobel_parts = separate(sobel)
# %% q13 right: by the largest entry
def separate(kernel):
    i, j = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    column, row = kernel[:, j], kernel[i] / kernel[i, j]
    return (column, row) if np.allclose(np.outer(column, row), kernel) else None
sobel_parts = separate(sobel)
# %% q13 right: by the rank
def separate(kernel):
    if np.linalg.matrix_rank(kernel) > 1:
        return None
    row = kernel[np.abs(kernel).sum(axis=1).argmax()]
    return kernel @ row / (row @ row), row
sobel_parts = separate(sobel)
