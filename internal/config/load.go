package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/pelletier/go-toml/v2"
)

// maxFileSize bounds what is read: no configuration written by people comes near it.
const maxFileSize = 1 << 20

// Load reads a configuration file over the defaults and validates the result.
// A file that is absent gives the defaults, unless mustExist is set. The error
// names every problem as "file:line: key: what would be right"; Problems takes
// it apart.
func Load(file string, mustExist bool) (*Config, error) {
	data, err := readFile(file)
	if errors.Is(err, fs.ErrNotExist) && !mustExist {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(file, data)
}

// Parse is Load for the contents of a file; the name is only used in errors.
func Parse(file string, data []byte) (*Config, error) {
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		return nil, syntaxError(file, err)
	}
	c := Default()
	d := decoder{}
	d.config(c, tree)
	// A value of the wrong type leaves the default, so what follows is about
	// the other keys only.
	found := append(d.found, c.problems()...)
	lines := keyLines(data)
	for _, p := range found {
		p.File, p.Line = file, lines.of(p.Key)
	}
	if err := found.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func readFile(file string) (data []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileSize {
		return nil, &Error{File: file, Problem: fmt.Sprintf("is larger than %d bytes; this cannot be a configuration", maxFileSize)}
	}
	return data, nil
}

func syntaxError(file string, err error) error {
	var bad *toml.DecodeError
	if !errors.As(err, &bad) {
		return &Error{File: file, Problem: err.Error()}
	}
	line, _ := bad.Position()
	return &Error{File: file, Line: line, Key: joinKey("", bad.Key()...), Problem: "is no valid TOML: " + trimTOML(bad.Error())}
}

// decoder moves values out of a parsed file into a Config.
type decoder struct {
	found problems
}

func (d *decoder) config(c *Config, tree map[string]any) {
	known := map[string]bool{}
	tables := map[string]map[string]any{"": tree}
	for _, s := range sections(c) {
		if s.name != "" {
			known[s.name] = true
			tables[s.name] = d.table(tree, s.name, s.name)
		}
	}
	for _, s := range sections(c) {
		extra := known
		if s.name != "" {
			extra = nil
		}
		if s.name == "runtime" {
			extra = map[string]bool{"handlers": true}
		}
		d.section(s, tables[s.name], extra)
	}
	handlers := d.table(tables["runtime"], "handlers", handlersTable)
	for _, name := range sortedKeys(handlers) {
		h := newHandler(name)
		s := handlerSection(name, &h)
		d.section(s, d.table(handlers, name, s.name), nil)
		c.Runtime.Handlers[name] = h
	}
}

// table returns a table within a table, nil if it is absent or no table.
func (d *decoder) table(parent map[string]any, key, path string) map[string]any {
	value, ok := parent[key]
	if !ok {
		return nil
	}
	t, ok := value.(map[string]any)
	if !ok {
		d.found.add(path, fmt.Sprintf("is %s; want a table, written as [%s]", kindOf(value), path))
	}
	return t
}

// section sets the settings of s from table and refuses every key that is
// neither one of them nor in extra.
func (d *decoder) section(s section, table map[string]any, extra map[string]bool) {
	byKey := make(map[string]setting, len(s.settings))
	names := sortedKeys(extra)
	for _, set := range s.settings {
		byKey[set.key] = set
		names = append(names, set.key)
	}
	for _, key := range sortedKeys(table) {
		if extra[key] {
			continue
		}
		set, ok := byKey[key]
		if !ok {
			d.unknown(s.name, key, names)
			continue
		}
		if !set.assign(table[key]) {
			d.found.add(joinKey(s.name, key),
				fmt.Sprintf("is %s; want %s, such as %s", kindOf(table[key]), kindOf(set.value), set.example))
		}
	}
}

func (d *decoder) unknown(table, key string, names []string) {
	where := "at the top level"
	if table != "" {
		where = "in [" + table + "]"
	}
	hint := suggest(key, names)
	if at := sectionOf(key); hint == "" && at != nil {
		hint = "; it belongs " + *at
	}
	if hint == "" {
		hint = "; possible are " + list(names)
	}
	d.found.add(joinKey(table, key), "is no key "+where+hint)
}

// assign stores a value as TOML gave it; false if it is of the wrong type.
func (s setting) assign(value any) bool {
	switch field := s.value.(type) {
	case *string:
		v, ok := value.(string)
		if ok {
			*field = v
		}
		return ok
	case *int:
		v, ok := value.(int64)
		if ok {
			*field = int(v)
		}
		return ok
	case *bool:
		v, ok := value.(bool)
		if ok {
			*field = v
		}
		return ok
	case *[]string:
		if v, ok := value.(string); ok && s.single {
			*field = []string{v}
			return true
		}
		v, ok := stringList(value)
		if ok {
			*field = v
		}
		return ok
	case *map[string]string:
		v, ok := stringMap(value)
		if ok {
			*field = v
		}
		return ok
	}
	return false
}

func stringList(value any) ([]string, bool) {
	in, ok := value.([]any)
	if !ok {
		return nil, false
	}
	out := make([]string, 0, len(in))
	for _, v := range in {
		s, ok := v.(string)
		if !ok {
			return nil, false
		}
		out = append(out, s)
	}
	return out, true
}

// stringMap also takes booleans and whole numbers, which people write bare.
func stringMap(value any) (map[string]string, bool) {
	in, ok := value.(map[string]any)
	if !ok {
		return nil, false
	}
	out := make(map[string]string, len(in))
	for key, v := range in {
		switch v := v.(type) {
		case string:
			out[key] = v
		case bool:
			out[key] = strconv.FormatBool(v)
		case int64:
			out[key] = strconv.FormatInt(v, 10)
		default:
			return nil, false
		}
	}
	return out, true
}
