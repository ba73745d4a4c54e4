// Audits a Tidegate ledger with nothing but Go's own packages for transparency logs
// (golang.org/x/mod/sumdb/note and tlog): an independent reader of docs/formats/ledger.md.
//
//	ledger -dir FOLDER -key VERIFIER_KEY [-key …] [-old FILE -consistency FILE] [-proof FILE]
//
// FOLDER holds `checkpoint` and `tile/`. Every key must have signed the checkpoint, and the older
// one in -old. -consistency holds one base64 hash a line; -proof is a C2SP tlog-proof whose leaf is
// taken from the entry bundles. Exits with 1 and one line on standard error when anything is wrong.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8

type keyList []string

func (k *keyList) String() string     { return strings.Join(*k, " ") }
func (k *keyList) Set(s string) error { *k = append(*k, s); return nil }

func main() {
	var keys keyList
	dir := flag.String("dir", "", "the log's folder")
	flag.Var(&keys, "key", "a verifier key that must have signed; the log's own first")
	old := flag.String("old", "", "a file with an older signed checkpoint")
	consistency := flag.String("consistency", "", "a file with the consistency proof from there")
	proof := flag.String("proof", "", "a file with a tlog-proof")
	flag.Parse()
	if err := audit(*dir, keys, *old, *consistency, *proof); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func audit(dir string, keys keyList, oldFile, consistencyFile, proofFile string) error {
	text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	tree, err := openCheckpoint(text, keys)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}

	// The leaves alone give the root.
	leaves, err := readLeaves(dir, tree.N)
	if err != nil {
		return err
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			if index >= int64(len(stored)) {
				return nil, fmt.Errorf("no stored hash %d", index)
			}
			hashes[i] = stored[index]
		}
		return hashes, nil
	})
	for i, leaf := range leaves {
		if !json.Valid(leaf) {
			return fmt.Errorf("leaf %d is not JSON", i)
		}
		hashes, err := tlog.StoredHashes(int64(i), leaf, reader)
		if err != nil {
			return err
		}
		stored = append(stored, hashes...)
	}
	root, err := tlog.TreeHash(tree.N, reader)
	if err != nil {
		return err
	}
	if root != tree.Hash {
		return fmt.Errorf("the leaves have the root %v, the checkpoint signs %v", root, tree.Hash)
	}

	// So do the hash tiles: the reader checks every tile that it opens against the signed root.
	tiles := tlog.TileHashReader(tree, &tileFolder{dir})
	indexes := make([]int64, len(leaves))
	for i := range leaves {
		indexes[i] = tlog.StoredHashIndex(0, int64(i))
	}
	hashes, err := tiles.ReadHashes(indexes)
	if err != nil {
		return fmt.Errorf("tiles: %w", err)
	}
	for i, leaf := range leaves {
		if hashes[i] != tlog.RecordHash(leaf) {
			return fmt.Errorf("leaf %d and its tile disagree", i)
		}
	}

	if oldFile != "" {
		if err := checkOld(tree, tiles, keys, oldFile, consistencyFile); err != nil {
			return fmt.Errorf("older checkpoint: %w", err)
		}
	}
	if proofFile != "" {
		if err := checkProof(tiles, keys, leaves, proofFile); err != nil {
			return fmt.Errorf("proof: %w", err)
		}
	}
	fmt.Printf("%d %v\n", tree.N, tree.Hash)
	return nil
}

// openCheckpoint verifies every key's signature and reads the three lines.
func openCheckpoint(text []byte, keys keyList) (tlog.Tree, error) {
	if len(keys) == 0 {
		return tlog.Tree{}, errors.New("no -key was given")
	}
	var verifiers []note.Verifier
	for _, key := range keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return tlog.Tree{}, err
		}
		verifiers = append(verifiers, verifier)
	}
	signed, err := note.Open(text, note.VerifierList(verifiers...))
	if err != nil {
		return tlog.Tree{}, err
	}
	if len(signed.Sigs) != len(keys) {
		return tlog.Tree{}, fmt.Errorf("%d of %d keys have signed", len(signed.Sigs), len(keys))
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) != 4 || lines[0] != verifiers[0].Name() {
		return tlog.Tree{}, errors.New("it is malformed or of another log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return tlog.Tree{}, errors.New("the size is malformed")
	}
	hash, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: hash}, err
}

func checkOld(tree tlog.Tree, tiles tlog.HashReader, keys keyList, oldFile, consistencyFile string) error {
	text, err := os.ReadFile(oldFile)
	if err != nil {
		return err
	}
	old, err := openCheckpoint(text, keys)
	if err != nil {
		return err
	}
	if old.N > tree.N {
		return fmt.Errorf("the log went back from %d to %d leaves", old.N, tree.N)
	}
	made, err := tlog.ProveTree(tree.N, old.N, tiles)
	if err != nil {
		return err
	}
	if err := tlog.CheckTree(made, tree.N, tree.Hash, old.N, old.Hash); err != nil {
		return fmt.Errorf("history was rewritten: %w", err)
	}
	given, err := os.ReadFile(consistencyFile)
	if err != nil {
		return err
	}
	hashes, err := parseHashes(strings.Split(strings.TrimSuffix(string(given), "\n"), "\n"))
	if err != nil {
		return err
	}
	return tlog.CheckTree(hashes, tree.N, tree.Hash, old.N, old.Hash)
}

func checkProof(tiles tlog.HashReader, keys keyList, leaves [][]byte, proofFile string) error {
	text, err := os.ReadFile(proofFile)
	if err != nil {
		return err
	}
	head, checkpoint, ok := bytes.Cut(text, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return errors.New("it is malformed")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil || index < 0 || index >= int64(len(leaves)) {
		return errors.New("its index is not that of a leaf")
	}
	given, err := parseHashes(lines[2:])
	if err != nil {
		return err
	}
	tree, err := openCheckpoint(checkpoint, keys)
	if err != nil {
		return err
	}
	leaf := tlog.RecordHash(leaves[index])
	if err := tlog.CheckRecord(given, tree.N, tree.Hash, index, leaf); err != nil {
		return err
	}
	made, err := tlog.ProveRecord(tree.N, index, tiles)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(made, tree.N, tree.Hash, index, leaf)
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, line := range lines {
		if line == "" {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) != tlog.HashSize {
			return nil, errors.New("a hash is malformed")
		}
		var hash tlog.Hash
		copy(hash[:], raw)
		hashes = append(hashes, hash)
	}
	return hashes, nil
}

// slotPath is the path of tile or bundle n of a kind, with width of at most 256.
func slotPath(dir, kind string, n int64, width int) string {
	tile := tlog.Tile{H: tileHeight, L: 0, N: n, W: width}.Path() // tile/8/0/x001/…
	return filepath.Join(dir, "tile", kind, strings.TrimPrefix(tile, "tile/8/0/"))
}

func readLeaves(dir string, size int64) ([][]byte, error) {
	var leaves [][]byte
	for n := int64(0); n<<tileHeight < size; n++ {
		width := size - n<<tileHeight
		if width > 1<<tileHeight {
			width = 1 << tileHeight
		}
		path := slotPath(dir, "entries", n, int(width))
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for i := int64(0); i < width; i++ {
			if len(data) < 2 || len(data)-2 < int(binary.BigEndian.Uint16(data)) {
				return nil, fmt.Errorf("%s is too short", path)
			}
			end := 2 + int(binary.BigEndian.Uint16(data))
			leaves = append(leaves, data[2:end])
			data = data[end:]
		}
		if len(data) != 0 {
			return nil, fmt.Errorf("%s is too long", path)
		}
	}
	return leaves, nil
}

// tileFolder reads tiles for Go's reader, whose own paths have the height in them.
type tileFolder struct{ dir string }

func (f *tileFolder) Height() int                     { return tileHeight }
func (f *tileFolder) SaveTiles([]tlog.Tile, [][]byte) {}
func (f *tileFolder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(slotPath(f.dir, strconv.Itoa(tile.L), tile.N, tile.W))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}
