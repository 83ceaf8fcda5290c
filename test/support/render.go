package support

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// description is the CRI as its descriptors have it.
type description struct {
	calls []protoreflect.MethodDescriptor
	// messages are those of all calls, each once, with what is within them.
	messages []protoreflect.MessageDescriptor
}

func describe(file protoreflect.FileDescriptor) description {
	d := description{}
	seen := map[protoreflect.FullName]bool{}
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			d.calls = append(d.calls, m)
			d.add(seen, m.Input())
			d.add(seen, m.Output())
		}
	}
	return d
}

// add adds a message and, in the order of its fields, those within it.
func (d *description) add(seen map[protoreflect.FullName]bool, m protoreflect.MessageDescriptor) {
	if m == nil || m.IsMapEntry() || seen[m.FullName()] {
		return
	}
	seen[m.FullName()] = true
	d.messages = append(d.messages, m)
	for i := range m.Fields().Len() {
		d.add(seen, m.Fields().Get(i).Message())
	}
}

const (
	pageHead = `# What Berth supports of the CRI

<!-- made from test/support/support.txt by ` + "`make generate`" + ` -->

Every call and every field of the Container Runtime Interface v1 (cri-api v0.37, Kubernetes 1.37): whether Berth supports it,
since which version, and which test shows it. TestCritest is the conformance suite. What a host cannot give is a
warning in the verbose status, or refused with the field, the value and the reason: see [below](#what-is-refused). A test fails when a call or a field has no line here, or a line names no test.

`
	tableHead = "| %s | supported | since | shown by | remark |\n|---|---|---|---|---|\n"
)

// render makes the page, and reports what is missing or too much in the list.
func (l *list) render(d description) (page string, problems []string) {
	var b strings.Builder
	b.WriteString(pageHead)
	row := func(name, shown string) {
		r := l.find(name)
		if r == nil {
			problems = append(problems, name+" has no line in the list")
			return
		}
		r.used = true
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", shown, r.answer, r.since, strings.Join(r.tests, ", "), r.remark)
	}
	fmt.Fprintf(&b, "## Calls\n\n"+tableHead, "call")
	for _, m := range d.calls {
		row(string(m.Name()), fmt.Sprintf("`%s`", m.Name()))
	}
	b.WriteString("\n## Fields\n")
	for _, m := range d.messages {
		if m.Fields().Len() == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n### %s\n\n"+tableHead, m.Name(), "field")
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			shown := fmt.Sprintf("`%s`", f.Name())
			if within := f.Message(); within != nil && !within.IsMapEntry() {
				shown += fmt.Sprintf(" ([%s](#%s))", within.Name(), strings.ToLower(string(within.Name())))
			}
			row(fmt.Sprintf("%s.%s", m.Name(), f.Name()), shown)
		}
	}
	for _, r := range l.rules {
		if !r.used {
			problems = append(problems, fmt.Sprintf("line %d: %s is about nothing, or another line says it", r.line, r.pattern))
		}
	}
	return b.String(), problems
}
